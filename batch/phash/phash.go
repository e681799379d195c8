// Package phash finds pictures that look alike: a 64-bit hash of the coarse structure of a picture's brightness, and an
// index of hashes by Hamming distance.
//
// The hash is the DCT hash that the field calls pHash (Zauner, "Implementation and Benchmarking of Perceptual Image Hash
// Functions", 2010): mean brightness of a 32 × 32 grid, its two-dimensional DCT-II, the 8 × 8 lowest frequencies without
// the constant row and column (u, v = 1…8), and a bit each that says whether the coefficient is above their median.
// docs/batch.md writes it down to the bit. Scaling and re-encoding change few bits; mirroring and cropping change many.
package phash

import (
	"fmt"
	"image"
	"math"
	"math/bits"
	"slices"
)

const (
	grid = 32
	side = 8
)

// cosines[k][x] is the DCT-II basis cos(π(2x+1)k / 2·grid) for k = 1…side.
var cosines = func() (c [side][grid]float64) {
	for k := range side {
		for x := range grid {
			c[k][x] = math.Cos(math.Pi * float64(2*x+1) * float64(k+1) / (2 * grid))
		}
	}
	return c
}()

// Of returns the hash of 8-bit RGB pixels, row-major, 3 bytes each. Sizes must be positive and pix hold them.
func Of(pix []uint8, width, height int) uint64 {
	var cells [grid][grid]float64
	for gy := range grid {
		y0, y1 := span(gy, height)
		for gx := range grid {
			x0, x1 := span(gx, width)
			var sum uint64
			for y := y0; y < y1; y++ {
				line := pix[3*(y*width+x0) : 3*(y*width+x1)]
				for i := 0; i+2 < len(line); i += 3 {
					// ITU-R 601-2 luma in 1/1000, whole numbers: the same on every machine.
					sum += 299*uint64(line[i]) + 587*uint64(line[i+1]) + 114*uint64(line[i+2])
				}
			}
			cells[gy][gx] = float64(sum) / float64((y1-y0)*(x1-x0))
		}
	}
	return ofCells(&cells)
}

// span is cell i's range of n pixels, at least one pixel wide: small pictures repeat theirs.
func span(i, n int) (from, to int) {
	from, to = i*n/grid, (i+1)*n/grid
	if to <= from {
		to = from + 1
	}
	return from, to
}

func ofCells(cells *[grid][grid]float64) uint64 {
	var rows [grid][side]float64
	for y := range grid {
		for u := range side {
			for x := range grid {
				rows[y][u] += float64(cells[y][x] * cosines[u][x]) // the conversion forbids a fused multiply-add
			}
		}
	}
	var values [side * side]float64
	for v := range side {
		for u := range side {
			for y := range grid {
				values[v*side+u] += float64(rows[y][u] * cosines[v][y])
			}
		}
	}
	for i := range values { // a flat picture's coefficients are rounding noise; cells are in 1/1000 of a level, so 1 is far below any structure
		if math.Abs(values[i]) < 1 {
			values[i] = 0
		}
	}
	sorted := slices.Clone(values[:])
	slices.Sort(sorted)
	median := (sorted[31] + sorted[32]) / 2
	var hash uint64
	for i, v := range values {
		if v > median {
			hash |= 1 << (63 - i)
		}
	}
	return hash
}

// OfImage is Of for a picture of the standard library.
func OfImage(img image.Image) uint64 {
	b := img.Bounds()
	pix := make([]uint8, 0, 3*b.Dx()*b.Dy())
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			r, g, bl, _ := img.At(x, y).RGBA()
			pix = append(pix, uint8(r>>8), uint8(g>>8), uint8(bl>>8))
		}
	}
	return Of(pix, b.Dx(), b.Dy())
}

// Distance is the number of bits in which two hashes differ.
func Distance(a, b uint64) int { return bits.OnesCount64(a ^ b) }

// Format writes a hash as rows have it.
func Format(h uint64) string { return fmt.Sprintf("%016x", h) }

// Index finds hashes within a distance of another. It cuts hashes into distance+1 bands: two hashes that differ in at most
// `distance` bits agree in one band at least, so only those that share a band are compared (multi-index hashing, Norouzi,
// Punjani and Fleet 2012). Not safe for several goroutines.
type Index struct {
	distance int
	hashes   []uint64
	bands    []map[uint64][]uint32
}

// MaxDistance is the largest distance an Index takes: with more bands than this a band says nothing.
const MaxDistance = 15

// NewIndex returns an empty index for distances up to the given one, which must be from 0 to MaxDistance.
func NewIndex(distance int) *Index {
	x := &Index{distance: distance, bands: make([]map[uint64][]uint32, distance+1)}
	for i := range x.bands {
		x.bands[i] = map[uint64][]uint32{}
	}
	return x
}

// band returns the bits of band i, at their place.
func (x *Index) band(h uint64, i int) uint64 {
	from, to := i*64/len(x.bands), (i+1)*64/len(x.bands)
	if to-from == 64 {
		return h
	}
	return h >> from & (1<<(to-from) - 1)
}

// Find returns the number (in order of Add) of the earliest hash within the distance.
func (x *Index) Find(h uint64) (number, distance int, ok bool) {
	number = -1
	for i, band := range x.bands {
		for _, n := range band[x.band(h, i)] {
			if number >= 0 && int(n) >= number {
				break // lists are in order
			}
			if d := Distance(h, x.hashes[n]); d <= x.distance {
				number, distance = int(n), d
				break
			}
		}
	}
	return number, distance, number >= 0
}

// Add appends a hash; its number is how many were added before.
func (x *Index) Add(h uint64) {
	n := uint32(len(x.hashes))
	x.hashes = append(x.hashes, h)
	for i, band := range x.bands {
		b := x.band(h, i)
		band[b] = append(band[b], n)
	}
}
