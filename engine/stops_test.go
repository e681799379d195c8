package engine

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestStopper(t *testing.T) {
	for _, c := range []struct {
		name   string
		stops  []string
		pieces []string
		want   string // the pieces that came out, one | after each
		found  bool
	}{
		{"none", nil, []string{"a", "b"}, "a|b|", false},
		{"within a piece", []string{"STOP"}, []string{"abSTOPcd"}, "ab|", true},
		{"across pieces", []string{"STOP"}, []string{"abST", "OP", "x"}, "ab||", true},
		{"a false start is given back", []string{"STOP"}, []string{"abST", "AR"}, "ab|STAR|", false},
		{"a start at the very end is given back", []string{"STOP"}, []string{"ab", "ST"}, "ab|ST|", false},
		{"a start within a false start", []string{"aab"}, []string{"a", "a", "a", "b"}, "||a||", true},
		{"the earliest of several", []string{"cd", "bc"}, []string{"abcd"}, "a|", true},
		{"several characters", []string{"。"}, []string{"你好", "。x"}, "你好||", true},
		{"first thing", []string{"\n"}, []string{"\n", "x"}, "|", true},
	} {
		s := stopper{stops: c.stops}
		var got strings.Builder
		found := false
		for i, p := range c.pieces {
			out, stopped := s.push(p, i == len(c.pieces)-1)
			got.WriteString(out + "|")
			if found = stopped; found {
				break
			}
		}
		if got.String() != c.want || found != c.found {
			t.Errorf("%s: %q, %v; want %q, %v", c.name, got.String(), found, c.want, c.found)
		}
	}
}

// However the text is cut into pieces, what comes out is the text up to the first stop string that is complete, and
// no piece cuts a character.
func TestStopperProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pieces := rapid.SliceOfN(rapid.StringOfN(rapid.RuneFrom([]rune("abé。")), 0, 3, -1), 1, 12).Draw(t, "pieces")
		stop := rapid.StringOfN(rapid.RuneFrom([]rune("abé。")), 1, 3, -1).Draw(t, "stop")
		text := strings.Join(pieces, "")
		want, _, wantFound := strings.Cut(text, stop)
		s := stopper{stops: []string{stop}}
		var got strings.Builder
		found := false
		for i, p := range pieces {
			out, stopped := s.push(p, i == len(pieces)-1)
			if !utf8.ValidString(out) {
				t.Fatalf("%q is cut within a character", out)
			}
			got.WriteString(out)
			if found = stopped; found {
				break
			}
		}
		if got.String() != want || found != wantFound {
			t.Fatalf("text %q, stop %q: got %q, %v", text, stop, got.String(), found)
		}
	})
}

func TestCheckStops(t *testing.T) {
	for _, stops := range [][]string{{""}, make([]string, 17), {strings.Repeat("x", 1025)}} {
		var bad *RequestError
		if err := checkStops(stops); !errors.As(err, &bad) || bad.Param != "stop" {
			t.Errorf("%d stop strings were accepted: %v", len(stops), err)
		}
	}
	if err := checkStops([]string{"\n", "USER:"}); err != nil {
		t.Error(err)
	}
}
