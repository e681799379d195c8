// Stop strings across token boundaries.

package engine

import "strings"

// maxStops bounds Request.Stop.
const maxStops = 16

// stopper watches a text that arrives in pieces for the first of some strings. Text that may still turn out to be the
// start of one is held back. The zero value has no stop strings and passes everything on.
type stopper struct {
	stops []string
	held  string
}

// push takes the next piece and returns what is final. stopped says that a stop string was found: the text before it
// is in out and the rest is dropped. With last set nothing is held back any more.
func (s *stopper) push(piece string, last bool) (out string, stopped bool) {
	if len(s.stops) == 0 {
		return piece, false
	}
	text := s.held + piece
	first := -1
	for _, stop := range s.stops {
		if at := strings.Index(text, stop); at >= 0 && (first < 0 || at < first) {
			first = at
		}
	}
	if first >= 0 {
		s.held = ""
		return text[:first], true
	}
	keep := 0
	if !last {
		keep = s.partial(text)
	}
	s.held = text[len(text)-keep:]
	return text[:len(text)-keep], false
}

// partial returns the length of the longest end of text that is the beginning of a stop string.
func (s *stopper) partial(text string) int {
	longest := 0
	for _, stop := range s.stops {
		for n := min(len(stop)-1, len(text)); n > longest; n-- {
			if strings.HasSuffix(text, stop[:n]) {
				longest = n
				break
			}
		}
	}
	return longest
}

// checkStops returns what is wrong with a request's stop strings.
func checkStops(stops []string) error {
	if len(stops) > maxStops {
		return badRequest("stop", CodeInvalid, nil, "%d stop strings; at most %d are allowed", len(stops), maxStops)
	}
	for i, s := range stops {
		if s == "" || len(s) > 1024 {
			return badRequest("stop", CodeInvalid, nil, "stop string %d has %d bytes; it must have 1 to 1024", i, len(s))
		}
	}
	return nil
}
