// Files that hold a sound alone, which people list by mistake.

package batch

import (
	"bytes"
	"fmt"

	"glimpse/batch/row"
)

// soundFormat names a sound by its first bytes; "" for everything else. Containers that may hold a video as well are left to
// whoever reads videos.
func soundFormat(data []byte) string {
	switch {
	case len(data) >= 12 && bytes.HasPrefix(data, []byte("RIFF")) && string(data[8:12]) == "WAVE":
		return "WAV"
	case bytes.HasPrefix(data, []byte("fLaC")):
		return "FLAC"
	case bytes.HasPrefix(data, []byte("ID3")):
		return "MP3"
	case len(data) >= 2 && data[0] == 0xff && data[1]&0xf6 == 0xf0: // ADTS; layer 0
		return "AAC"
	case len(data) >= 2 && data[0] == 0xff && data[1]&0xe6 == 0xe2: // layer III, with or without a checksum
		return "MP3"
	case bytes.HasPrefix(data, []byte("#!AMR")):
		return "AMR"
	}
	return ""
}

// refuseSound is what a row says of a sound.
func refuseSound(format string) *row.ItemError {
	return &row.ItemError{Kind: row.KindVideo, Message: fmt.Sprintf("it is a sound (%s); captions are of pictures and videos", format)}
}
