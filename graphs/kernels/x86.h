// What the kernels for x86 share: tiles, transposition, the compiler's target.
#ifndef GLIMPSE_KERNELS_X86_H
#define GLIMPSE_KERNELS_X86_H

#if defined(__x86_64__)

#include <stdint.h>
#include <string.h>

#include <immintrin.h>

#define GK_AVX512 "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"
#define GK_TARGET_VNNI __attribute__((target(GK_AVX512)))
#define GK_TARGET_AMX __attribute__((target(GK_AVX512 ",avx512bf16,amx-tile,amx-int8,amx-bf16")))

#define GK_INLINE static inline __attribute__((always_inline))

// The argument of LDTILECFG: how many rows and bytes a row each of the eight tile registers has.
typedef struct {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} gk_tiles;

// Tiles 0–3 are sums of 16 × 16 results. Of tile products with depth bytes of the summed dimension, the left operands are tiles
// 6 and 7 (16 rows of depth bytes), the right ones 4 and 5 (depth/4 rows of 16 groups of four bytes).
GK_INLINE gk_tiles gk_tile_shapes(int depth) {
  gk_tiles t;
  memset(&t, 0, sizeof t);
  t.palette = 1;
  for (int i = 0; i < 4; i++) t.rows[i] = 16, t.row_bytes[i] = 64;
  for (int i = 4; i < 6; i++) t.rows[i] = (uint8_t)(depth / 4), t.row_bytes[i] = 64;
  for (int i = 6; i < 8; i++) t.rows[i] = 16, t.row_bytes[i] = (uint16_t)depth;
  return t;
}

// Transposes 16 × 16 words of 32 bits.
GK_INLINE GK_TARGET_VNNI void gk_transpose(__m512i r[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

#endif
#endif
