package server

import "glimpse/engine"

// fakePrepared is a prompt of one token a word.
func fakePrepared(words []string, pictures int) *engine.Prepared {
	p := &engine.Prepared{ImageTokens: 4 * pictures}
	for i := range words {
		p.IDs = append(p.IDs, int32(i))
	}
	return p
}
