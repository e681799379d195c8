package checkpoint

import (
	"context"
	"testing"
)

func mustOpen(t testing.TB, path string) Checkpoint {
	t.Helper()
	c, err := Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("closing twice: %v", err)
		}
	})
	return c
}

func readAll(t testing.TB, c Checkpoint, name string) []float32 {
	t.Helper()
	info, ok := c.Lookup(name)
	if !ok {
		t.Fatalf("%s is missing", name)
	}
	values := make([]float32, info.Elements())
	if err := c.ReadFloat32(context.Background(), name, 0, values); err != nil {
		t.Fatal(err)
	}
	return values
}

func expectError(t *testing.T, name string, err error, want string) {
	t.Helper()
	switch {
	case err == nil:
		t.Errorf("%s: no error, want %s", name, want)
	case err.Error() != want:
		t.Errorf("%s:\n got %s\nwant %s", name, err, want)
	}
}
