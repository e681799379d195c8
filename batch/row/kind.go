// Telling files by their first bytes: what kind of video a file is, and what its name ends in where it is stored.

package row

import "bytes"

// HeadBytes is how much of a file ClipExtension wants to see.
const HeadBytes = 1 << 10

// FramesExtension is what the name of a packed folder of frames ends in: a tar file of the frames.
const FramesExtension = "frames.tar"

// ClipExtension returns what the name of a video file ends in, without a dot, by its first bytes; "" where it is none. Some of
// these containers may hold a sound alone, which only reading them tells.
func ClipExtension(head []byte) string {
	at := func(place int, text string) bool {
		return len(head) >= place+len(text) && string(head[place:place+len(text)]) == text
	}
	switch {
	case at(4, "ftyp"):
		return isoExtension(head)
	case at(4, "moov"), at(4, "mdat"), at(4, "wide"), at(4, "pnot"):
		return "mov"
	case at(0, "\x1a\x45\xdf\xa3"):
		if bytes.Contains(head[:min(len(head), 64)], []byte("webm")) {
			return "webm"
		}
		return "mkv"
	case at(0, "RIFF") && at(8, "AVI "):
		return "avi"
	case at(0, "OggS"):
		return "ogv"
	case at(0, "FLV\x01"):
		return "flv"
	case at(0, "\x30\x26\xb2\x75\x8e\x66\xcf\x11"):
		return "wmv"
	case at(0, "DKIF"):
		return "ivf"
	case at(0, "\x00\x00\x01\xba"), at(0, "\x00\x00\x01\xb3"):
		return "mpg"
	case at(0, "\x47") && at(188, "\x47") && at(376, "\x47"):
		return "ts"
	case IsPackedFolder(head):
		return FramesExtension
	}
	return ""
}

// isoExtension tells MP4 and QuickTime from the still pictures of the same container.
func isoExtension(head []byte) string {
	if len(head) < 12 {
		return ""
	}
	switch string(head[8:12]) {
	case "avif", "heic", "heix", "heim", "heis", "mif1":
		return ""
	case "qt  ":
		return "mov"
	}
	return "mp4"
}

// IsPackedFolder reports whether the bytes are those of a tar file, which is how a folder of frames travels.
func IsPackedFolder(head []byte) bool {
	return len(head) >= 262 && string(head[257:262]) == "ustar"
}
