//go:build !linux

package hub

// freeSpace is not known here: a full disk is found when it is full.
func freeSpace(string) (int64, bool) { return 0, false }
