package engine

import "testing"

// prompt of a sequence: 0 is an image token, everything else text.
func spanned(ids ...int32) *sequence { return &sequence{ids: ids, prompt: len(ids), imageToken: 0} }

func TestSpanIsThePictureAroundAToken(t *testing.T) {
	q := spanned(7, 0, 0, 0, 8, 0, 9)
	q.ids = append(q.ids, 0) // an image token that was generated is text
	for at, want := range []span{{0, 0}, {1, 3}, {1, 3}, {1, 3}, {4, 4}, {5, 5}, {6, 6}, {7, 7}} {
		if got := q.spanAt(at); got != want {
			t.Errorf("token %d: %v, want %v", at, got, want)
		}
	}
}

func TestChunksKeepPicturesWhole(t *testing.T) {
	for _, tc := range []struct {
		cached, take, want int // want 0: refused
	}{
		{0, 1, 1}, {0, 2, 1}, {0, 3, 1}, {0, 4, 4}, {0, 5, 5}, {0, 6, 6}, {0, 7, 7},
		{1, 3, 3}, {1, 2, 0}, {1, 1, 0}, {4, 2, 2}, {5, 1, 1},
	} {
		q := spanned(7, 0, 0, 0, 8, 0, 9)
		q.cached = tc.cached
		got, err := q.wholePictures(tc.take)
		if tc.want == 0 {
			if err == nil {
				t.Errorf("%d tokens from %d on: %d, want an error", tc.take, tc.cached, got)
			}
		} else if got != tc.want || err != nil {
			t.Errorf("%d tokens from %d on: %d (%v), want %d", tc.take, tc.cached, got, err, tc.want)
		}
	}
}
