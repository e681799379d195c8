package verify

import "testing"

func TestSameText(t *testing.T) {
	for _, tc := range []struct {
		have, want string
		same       bool
	}{
		{"a cat", "a cat", true},
		{" a cat ", "a cat", true}, // authors' code strips
		{"a cat", "a dog", false},
		{"a\ufffd\ufffdb", "a\ufffd\ufffdb", true},
		{"y\ufffd\ufffd\ufffd\ufffdde", "yi\ufffd@\ufffdde", true}, // four bytes, two of them characters
		{"\ufffd\ufffd\ufffd\ufffd", "\u05c8\ufffd\ufffd", true},   // four bytes, two of them one character
		{"\ufffd\ufffd", "ab c", false},
		{"\ufffd\ufffd\ufffd", "ab", false},
		{"a\ufffd", "a", false},
		{"a", "a\ufffd", false},
		{"", "", true},
	} {
		if got := sameText(tc.have, tc.want); got != tc.same {
			t.Errorf("%q and %q: %v", tc.have, tc.want, got)
		}
	}
}
