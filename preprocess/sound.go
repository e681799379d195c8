package preprocess

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Sound is sound in memory: for each channel as many samples, full scale −1 to 1.
type Sound struct {
	Rate     int // samples a second
	Channels [][]float32
}

// Samples returns how many samples a channel has.
func (s *Sound) Samples() int {
	if s == nil || len(s.Channels) == 0 {
		return 0
	}
	return len(s.Channels[0])
}

// Seconds returns how long the sound is.
func (s *Sound) Seconds() float64 { return float64(s.Samples()) / float64(s.Rate) }

// SoundLimits bound what a sound may ask for. They are checked against its header, before samples are allocated. The zero
// value of a field means its default.
type SoundLimits struct {
	MaxBytes    int64   // of the file; default 256 MiB
	MaxSeconds  float64 // default an hour
	MaxChannels int     // default 8
}

// Defaults of SoundLimits.
const (
	DefaultMaxSoundBytes    = 256 << 20
	DefaultMaxSoundSeconds  = 3600
	DefaultMaxSoundChannels = 8
)

func (l SoundLimits) withDefaults() SoundLimits {
	if l.MaxBytes == 0 {
		l.MaxBytes = DefaultMaxSoundBytes
	}
	if l.MaxSeconds == 0 {
		l.MaxSeconds = DefaultMaxSoundSeconds
	}
	if l.MaxChannels == 0 {
		l.MaxChannels = DefaultMaxSoundChannels
	}
	return l
}

// SoundError is a sound that could not be read.
type SoundError struct {
	Kind   Kind // KindUnsupported, KindTruncated, KindCorrupt, KindTooLarge; KindNotSound where it is none
	Detail string
}

// KindNotSound says that no sound format was recognised.
const KindNotSound Kind = "not_a_sound"

func (e *SoundError) Error() string { return string(e.Kind) + ": " + e.Detail }

func soundf(kind Kind, detail string, args ...any) *SoundError {
	return &SoundError{kind, fmt.Sprintf(detail, args...)}
}

// Sample formats of a WAV file.
const (
	wavPCM        = 1
	wavFloat      = 3
	wavExtensible = 0xfffe

	minSoundRate = 100
	maxSoundRate = 768_000
)

// IsWAV reports whether the data begins as a WAV file does.
func IsWAV(data []byte) bool {
	return len(data) >= 12 && string(data[:4]) == "RIFF" && string(data[8:12]) == "WAVE"
}

// DecodeWAV reads a WAV file: 8 to 32 bits of PCM, or 32 and 64 bits of floating point. Integers become what torchaudio
// makes of them: a sample divided by 2^(bits−1), 8 bits with 128 as their zero. Errors are *SoundError.
func DecodeWAV(data []byte, limits SoundLimits) (*Sound, error) {
	limits = limits.withDefaults()
	if int64(len(data)) > limits.MaxBytes {
		return nil, soundf(KindTooLarge, "%d bytes; the limit is %d", len(data), limits.MaxBytes)
	}
	if !IsWAV(data) {
		return nil, soundf(KindNotSound, "it does not begin as a WAV file does (other formats are read through ffmpeg)")
	}
	var format *wavFormat
	for rest := data[12:]; len(rest) >= 8; {
		name, size := string(rest[:4]), int64(binary.LittleEndian.Uint32(rest[4:]))
		rest = rest[8:]
		body := rest[:min(size, int64(len(rest)))]
		switch name {
		case "fmt ":
			var err error
			if format, err = parseWAVFormat(body, limits); err != nil {
				return nil, err
			}
		case "data":
			if format == nil {
				return nil, soundf(KindCorrupt, "its samples come before their format")
			}
			// Programs that write to a pipe do not know the size and leave all bits set or none.
			if streamed := size == 0 || size >= math.MaxInt32; streamed {
				body = rest
			} else if size > int64(len(rest)) {
				return nil, soundf(KindTruncated, "its header promises %d bytes of samples, and %d follow", size, len(rest))
			}
			return format.decode(body, limits)
		}
		if size+size&1 >= int64(len(rest)) {
			break
		}
		rest = rest[size+size&1:]
	}
	return nil, soundf(KindTruncated, "it ends before its samples")
}

type wavFormat struct {
	float    bool
	rate     int
	channels int
	bytes    int // of a sample
}

func parseWAVFormat(body []byte, limits SoundLimits) (*wavFormat, error) {
	if len(body) < 16 {
		return nil, soundf(KindTruncated, "its format has %d bytes; 16 are due", len(body))
	}
	le := binary.LittleEndian
	tag, bits := le.Uint16(body), int(le.Uint16(body[14:]))
	if tag == wavExtensible {
		if len(body) < 26 {
			return nil, soundf(KindTruncated, "its extended format has %d bytes; 26 are due", len(body))
		}
		tag = le.Uint16(body[24:])
	}
	f := &wavFormat{float: tag == wavFloat, channels: int(le.Uint16(body[2:])), bytes: bits / 8}
	rate := le.Uint32(body[4:])
	switch {
	case tag != wavPCM && tag != wavFloat:
		return nil, soundf(KindUnsupported, "samples of format %d; PCM (1) and floating point (3) are read", tag)
	case tag == wavPCM && bits != 8 && bits != 16 && bits != 24 && bits != 32 || tag == wavFloat && bits != 32 && bits != 64:
		return nil, soundf(KindUnsupported, "samples of %d bits; 8, 16, 24 and 32 bits of PCM and 32 and 64 of floating point are read", bits)
	case rate < minSoundRate || rate > maxSoundRate:
		return nil, soundf(KindCorrupt, "%d samples a second; %d to %d are read", rate, minSoundRate, maxSoundRate)
	case f.channels < 1:
		return nil, soundf(KindCorrupt, "no channels")
	case f.channels > limits.MaxChannels:
		return nil, soundf(KindTooLarge, "%d channels; the limit is %d", f.channels, limits.MaxChannels)
	case int(le.Uint16(body[12:])) != f.bytes*f.channels:
		return nil, soundf(KindCorrupt, "%d bytes for %d samples of %d bits", le.Uint16(body[12:]), f.channels, bits)
	}
	f.rate = int(rate)
	return f, nil
}

func (f *wavFormat) decode(body []byte, limits SoundLimits) (*Sound, error) {
	frame := f.bytes * f.channels
	n := len(body) / frame // what is left of a last sample is dropped, as players do
	if n == 0 {
		return nil, soundf(KindTruncated, "no samples")
	}
	if seconds := float64(n) / float64(f.rate); seconds > limits.MaxSeconds {
		return nil, soundf(KindTooLarge, "%.1f seconds; the limit is %g", seconds, limits.MaxSeconds)
	}
	s := &Sound{Rate: f.rate, Channels: make([][]float32, f.channels)}
	for c := range s.Channels {
		samples := make([]float32, n)
		for i := range samples {
			samples[i] = f.sample(body[i*frame+c*f.bytes:])
			if v := float64(samples[i]); math.IsNaN(v) || math.IsInf(v, 0) {
				return nil, soundf(KindCorrupt, "sample %d of channel %d is no number", i, c)
			}
		}
		s.Channels[c] = samples
	}
	return s, nil
}

func (f *wavFormat) sample(b []byte) float32 {
	le := binary.LittleEndian
	switch {
	case f.float && f.bytes == 4:
		return math.Float32frombits(le.Uint32(b))
	case f.float:
		return float32(math.Float64frombits(le.Uint64(b)))
	case f.bytes == 1:
		return (float32(b[0]) - 128) / 128
	case f.bytes == 2:
		return float32(int16(le.Uint16(b))) / (1 << 15)
	case f.bytes == 3:
		return float32(int32(uint32(b[0])<<8|uint32(b[1])<<16|uint32(b[2])<<24)>>8) / (1 << 23)
	}
	return float32(int32(le.Uint32(b))) / (1 << 31)
}

// check refuses a sound whose fields disagree.
func (s *Sound) check() error {
	if s.Samples() == 0 {
		return errors.New("sound has no samples")
	}
	if s.Rate < minSoundRate || s.Rate > maxSoundRate {
		return fmt.Errorf("sound has %d samples a second; %d to %d are taken", s.Rate, minSoundRate, maxSoundRate)
	}
	for c, samples := range s.Channels {
		if len(samples) != s.Samples() {
			return fmt.Errorf("sound has %d samples in channel 0 and %d in channel %d", s.Samples(), len(samples), c)
		}
	}
	return nil
}
