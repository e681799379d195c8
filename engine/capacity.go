// How many tokens a slot holds.

package engine

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"glimpse/graphs"
	"glimpse/manifest"
)

// minCapacity is the smallest context that is chosen without being asked for.
const minCapacity = 256

// chooseCapacity returns the tokens of a slot. What was asked for is given or refused, with the number that would fit in
// the available bytes; a default shrinks to what fits, and says so.
func chooseCapacity(spec manifest.Decoder, opts Options, available int64, logger *slog.Logger) (int, error) {
	want := opts.Capacity
	if want == 0 {
		want = defaultCapacity
	}
	if want > spec.MaxPositions {
		if opts.Capacity != 0 {
			logger.Warn("capacity cut to what the model was trained for", "asked", opts.Capacity, "max_positions", spec.MaxPositions)
		}
		want = spec.MaxPositions
	}
	dtype, err := graphs.ParseDType(spec.CacheDType)
	if err != nil {
		return 0, fmt.Errorf("decoder.cache_dtype: %w", err)
	}
	if available == 0 {
		return want, nil // unknown: the system decides when the arena is mapped
	}
	// Sizes are bounded by the manifest's checks and withDefaults, far below overflow.
	token := 2 * int64(spec.Layers) * int64(spec.KVHeads) * int64(spec.HeadDim) * int64(dtype.Size()) * int64(opts.Slots)
	chunk := int64(min(opts.PrefillChunk, want))
	fits := available/token - chunk
	if int64(want) <= fits {
		return want, nil
	}
	need := (int64(want) + chunk) * token
	if opts.Capacity != 0 || fits < minCapacity {
		return 0, fmt.Errorf("the KV cache of %d slots of %d tokens needs %d MiB and %d MiB of memory are free: %d tokens a slot would fit; ask for a smaller capacity or fewer slots",
			opts.Slots, want, need>>20, available>>20, max(0, fits))
	}
	logger.Warn("context cut to the memory that is free", "tokens", fits, "wanted", want, "slots", opts.Slots)
	return int(fits), nil
}

// stepShare is the part of a device's memory that is left to what the operators of a step need: activations, and what libraries
// keep to work in.
const stepShare = 8

// memoryFor returns the bytes that a KV cache may take in a device's memory, nil for the system's; 0 when nobody says.
func memoryFor(memory graphs.DeviceMemory) (int64, error) {
	if memory == nil {
		return availableMemory(), nil
	}
	available, err := memory.Available()
	if err != nil {
		return 0, fmt.Errorf("ask how much memory the device has: %w", err)
	}
	return max(1, available-available/stepShare), nil
}

// availableMemory returns the bytes that the kernel could hand out, 0 when it does not say.
func availableMemory() int64 {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0
	}
	defer f.Close()
	return parseAvailable(f)
}

func parseAvailable(r io.Reader) int64 {
	for s := bufio.NewScanner(r); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "MemAvailable:"); ok {
			var kib int64
			if _, err := fmt.Sscanf(rest, "%d kB", &kib); err == nil && kib > 0 && kib < 1<<50 {
				return kib << 10
			}
		}
	}
	return 0
}
