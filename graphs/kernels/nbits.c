// See nbits.h. Weights are read where they lie, in the layout of the model's file: nothing is packed when a graph is loaded.
//
// Sixteen rows of weights, a panel, are computed together, 128 columns at a time. Sums of products inside a block are
// integers, so their order is free; between blocks they are float32 in the blocks' order, in the kernel for one row and in the one
// for many alike.
#include "nbits.h"

#if defined(__x86_64__)

#include <float.h>
#include <math.h>

#include "scratch.h"
#include "x86.h"

enum { PANEL = 16, CHUNK = 128 };

// Short blocks cost a tile more, and a few rows are cheaper one by one; both ways find the same.
static int tiled(const gk_nbits *job) { return job->amx && job->rows > (job->block == 32 ? 3 : 1); }
static int64_t row_tiles(const gk_nbits *job) { return (job->rows + 15) / 16; }
static int64_t lanes(const gk_nbits *job) { return tiled(job) ? row_tiles(job) * 16 : job->rows; }
static int64_t padded_blocks(const gk_nbits *job) { return (job->padded + job->block - 1) / job->block + 4; }

size_t gk_nbits_work(const gk_nbits *job) {
  gk_nbits j = *job;
  j.padded = (j.k + CHUNK - 1) / CHUNK * CHUNK;
  return (size_t)lanes(&j) * ((size_t)j.padded + 64 + 8 * (size_t)padded_blocks(&j)) + 256;
}

void gk_nbits_layout(gk_nbits *job, void *work) {
  job->padded = (job->k + CHUNK - 1) / CHUNK * CHUNK;
  job->levels = work;
  char *after = (char *)work + lanes(job) * (job->padded + 64);
  job->steps = (float *)after;
  job->sums = (int32_t *)(after + 4 * lanes(job) * padded_blocks(job));
  int64_t panel_bytes = PANEL * job->row_bytes, panels = (job->n + PANEL - 1) / PANEL;
  job->panels_a_task = (192 << 10) / panel_bytes;
  if (job->panels_a_task > panels / 8) job->panels_a_task = panels / 8;
  if (job->panels_a_task < 1) job->panels_a_task = 1;
}

// Quantizes a row to natural order: levels, and by block the step and the corrected sum, stride apart.
GK_TARGET_VNNI static void quantize_row(const gk_nbits *job, const float *x, int8_t *levels, float *steps, int32_t *sums,
                                        int64_t stride) {
  int64_t zero = job->bits == 4 ? 8 : 128;
  for (int64_t b = 0; b * job->block < job->padded; b++) {
    int64_t from = b * job->block, to = from + job->block;
    if (to > job->padded) to = job->padded;
    __m512 largest = _mm512_setzero_ps();
    __mmask16 no_number = 0;
    for (int64_t i = from; i < to; i += 16) {
      int64_t left = job->k - i;
      __mmask16 m = left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
      __m512 v = _mm512_maskz_loadu_ps(m, x + i);
      largest = _mm512_max_ps(largest, _mm512_abs_ps(v));
      no_number |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    }
    // What is no number, or without bounds, has no level: the results are no numbers either, as the engine expects of a broken model.
    float most = _mm512_reduce_max_ps(largest);
    if (no_number || most > FLT_MAX) most = NAN;
    float step = most / 127, inverse = most > 0 ? 127 / most : 0;
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = from; i < to; i += 16) {
      int64_t left = job->k - i;
      __mmask16 m = left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
      __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(m, x + i), _mm512_set1_ps(inverse)));
      sum = _mm512_add_epi32(sum, q);
      _mm_storeu_si128((__m128i *)(levels + i), _mm512_cvtsepi32_epi8(q));
    }
    steps[b * stride] = step;
    sums[b * stride] = (int32_t)(zero * _mm512_reduce_add_epi32(sum));
  }
}

// The order in which a nibble's kernel meets 128 columns: the even ones, then the odd ones.
GK_TARGET_VNNI static void split_nibbles(int8_t *levels, int64_t padded) {
  for (int64_t i = 0; i < padded; i += CHUNK) {
    __m512i a = _mm512_loadu_si512(levels + i), b = _mm512_loadu_si512(levels + i + 64);
    __m256i even0 = _mm512_cvtepi16_epi8(a), even1 = _mm512_cvtepi16_epi8(b);
    __m256i odd0 = _mm512_cvtepi16_epi8(_mm512_srli_epi16(a, 8)), odd1 = _mm512_cvtepi16_epi8(_mm512_srli_epi16(b, 8));
    _mm256_storeu_si256((__m256i *)(levels + i), even0);
    _mm256_storeu_si256((__m256i *)(levels + i + 32), even1);
    _mm256_storeu_si256((__m256i *)(levels + i + 64), odd0);
    _mm256_storeu_si256((__m256i *)(levels + i + 96), odd1);
  }
}

// The order of tiles: in each 32 columns the even ones, then the odd ones.
GK_INLINE GK_TARGET_VNNI __m512i split_32(__m512i v) {
  __m256i even = _mm512_cvtepi16_epi8(v), odd = _mm512_cvtepi16_epi8(_mm512_srli_epi16(v, 8));
  __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(even), odd, 1);
  return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 4, 5, 2, 3, 6, 7), both);
}

// A tile's sixteen rows: levels [padded/4][16 rows][4 columns], steps and sums [block][16 rows].
GK_TARGET_VNNI static void quantize_tile(const gk_nbits *job, int64_t tile) {
  int64_t size = job->padded;
  int8_t *levels = job->levels + tile * 16 * size;
  float *steps = job->steps + tile * 16 * padded_blocks(job);
  int32_t *sums = job->sums + tile * 16 * padded_blocks(job);
  int8_t *rows = gk_scratch_take((size_t)(16 * size));
  if (!rows) {
    gk_failed(job->failed);
    return;
  }
  for (int64_t r = 0; r < 16; r++) {
    int64_t row = tile * 16 + r;
    if (row < job->rows) {
      quantize_row(job, job->x + row * job->k, rows + r * size, steps + r, sums + r, 16);
      continue;
    }
    memset(rows + r * size, 0, (size_t)size);
    for (int64_t b = 0; b * job->block < size; b++) steps[b * 16 + r] = 0, sums[b * 16 + r] = 0;
  }
  for (int64_t i = 0; i < size; i += 64) {
    __m512i v[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; r++) {
      v[r] = _mm512_loadu_si512(rows + r * size + i);
      if (job->bits == 4) v[r] = split_32(v[r]);
    }
    gk_transpose(v);
#pragma GCC unroll 16
    for (int r = 0; r < 16; r++) _mm512_storeu_si512(levels + i * 16 + r * 64, v[r]);
  }
  gk_scratch_give(rows);
}

size_t gk_nbits_quantize_parts(const gk_nbits *job) { return tiled(job) ? (size_t)row_tiles(job) : (size_t)job->rows; }

void gk_nbits_quantize(void *state, size_t part) {
  const gk_nbits *job = state;
  if (tiled(job)) {
    quantize_tile(job, (int64_t)part);
    return;
  }
  int64_t r = (int64_t)part;
  int8_t *levels = job->levels + r * job->padded;
  quantize_row(job, job->x + r * job->k, levels, job->steps + r * padded_blocks(job), job->sums + r * padded_blocks(job), 1);
  if (job->bits == 4) split_nibbles(levels, job->padded);
}

// The last panel ends with the matrix, and so overlaps the one before where n is no multiple of 16: both find the same.
static int64_t panel_start(const gk_nbits *job, int64_t panel) {
  return (panel + 1) * PANEL <= job->n ? panel * PANEL : job->n - PANEL;
}

// Where a panel lies: as the operator has it, its rows after each other, or packed, its chunks after each other and then its scales.
typedef struct {
  int64_t n0; // its first row
  const uint8_t *weights;
  int64_t row, chunk; // bytes to the next row's and the next chunk's
  const float *scales;
  int64_t scale_row, scale_block;       // elements to the next row's and the next block's
  const char *next, *next_scales;       // what is read after this panel, each in one run
} panel_place;

static int64_t chunk_bytes(const gk_nbits *job) { return CHUNK * job->bits / 8; }
static int64_t packed_weights(const gk_nbits *job) { return (job->k + CHUNK - 1) / CHUNK * PANEL * chunk_bytes(job); }
static int64_t panel_bytes(const gk_nbits *job) { return packed_weights(job) + (job->blocks + 3) / 4 * 4 * PANEL * (job->half ? 2 : 4); }

// scales is room for a panel's scales in float32 by block, used where they are packed as float16.
GK_TARGET_VNNI static panel_place place_of(const gk_nbits *job, int64_t panel, float *scales) {
  panel_place p = {.n0 = panel_start(job, panel)};
  if (job->packed) {
    p.weights = job->packed + panel * panel_bytes(job);
    p.row = chunk_bytes(job), p.chunk = PANEL * p.row;
    p.scales = (const float *)(p.weights + packed_weights(job));
    p.scale_row = 1, p.scale_block = PANEL;
    p.next = (const char *)p.weights + panel_bytes(job);
    p.next_scales = p.next + packed_weights(job);
    if (job->half) {
      const char *from = (const char *)p.scales;
      // Up to a whole chunk: behind the last block there are zeros, which meet steps of zero.
      for (int64_t b = 0; b < (job->blocks + 3) / 4 * 4; b++)
        _mm512_store_ps(scales + b * PANEL, _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(from + b * PANEL * 2))));
      p.scales = scales;
    }
    return p;
  }
  p.weights = job->weights + p.n0 * job->row_bytes;
  p.row = job->row_bytes, p.chunk = chunk_bytes(job);
  p.scales = job->scales + p.n0 * job->blocks;
  p.scale_row = job->blocks, p.scale_block = 1;
  p.next = (const char *)p.weights + PANEL * job->row_bytes;
  p.next_scales = (const char *)(p.scales + PANEL * job->blocks);
  return p;
}

// Fetches the next panel's scales, which are read here and there.
static void fetch_scales(const gk_nbits *job, const panel_place *p) {
  for (int64_t i = 0; i < PANEL * job->blocks * (job->half ? 2 : 4); i += 64) _mm_prefetch(p->next_scales + i, _MM_HINT_T1);
}

// Scales of a panel by block: out[block][16 rows].
GK_TARGET_VNNI static void panel_scales(const gk_nbits *job, int64_t n0, float *out) {
  for (int64_t b = 0; b < job->blocks; b += 4) {
    int64_t left = job->blocks - b;
    __mmask8 m = left >= 4 ? 0xf : (__mmask8)((1u << left) - 1);
    __m512 g[4];
    for (int i = 0; i < 4; i++) {
      __m128 column[4];
      for (int j = 0; j < 4; j++) {
        column[j] = _mm_maskz_loadu_ps(m, job->scales + (n0 + 4 * j + i) * job->blocks + b);
      }
      __m512 v = _mm512_castps128_ps512(column[0]);
      v = _mm512_insertf32x4(v, column[1], 1);
      v = _mm512_insertf32x4(v, column[2], 2);
      g[i] = _mm512_insertf32x4(v, column[3], 3);
    }
    __m512 lo01 = _mm512_unpacklo_ps(g[0], g[1]), hi01 = _mm512_unpackhi_ps(g[0], g[1]);
    __m512 lo23 = _mm512_unpacklo_ps(g[2], g[3]), hi23 = _mm512_unpackhi_ps(g[2], g[3]);
    _mm512_storeu_ps(out + (b + 0) * 16, _mm512_shuffle_ps(lo01, lo23, 0x44));
    _mm512_storeu_ps(out + (b + 1) * 16, _mm512_shuffle_ps(lo01, lo23, 0xee));
    _mm512_storeu_ps(out + (b + 2) * 16, _mm512_shuffle_ps(hi01, hi23, 0x44));
    _mm512_storeu_ps(out + (b + 3) * 16, _mm512_shuffle_ps(hi01, hi23, 0xee));
  }
}

// From sixteen vectors of sums, one a row of weights, whose lanes 4b..4b+3 belong to the chunk's quarter b: by quarter the
// sums of all sixteen rows.
GK_INLINE GK_TARGET_VNNI void sum_quarters(const __m512i z[16], __m512i quarter[4]) {
  __m512i g[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m512i *c = z + 4 * i;
    __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(c[0], c[1]), _mm512_unpackhi_epi32(c[0], c[1]));
    __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(c[2], c[3]), _mm512_unpackhi_epi32(c[2], c[3]));
    g[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  }
  __m512i p0 = _mm512_shuffle_i32x4(g[0], g[1], 0x44), p1 = _mm512_shuffle_i32x4(g[0], g[1], 0xee);
  __m512i p2 = _mm512_shuffle_i32x4(g[2], g[3], 0x44), p3 = _mm512_shuffle_i32x4(g[2], g[3], 0xee);
  quarter[0] = _mm512_shuffle_i32x4(p0, p2, 0x88);
  quarter[1] = _mm512_shuffle_i32x4(p0, p2, 0xdd);
  quarter[2] = _mm512_shuffle_i32x4(p1, p3, 0x88);
  quarter[3] = _mm512_shuffle_i32x4(p1, p3, 0xdd);
}

// The products of 128 columns of a row of weights, sums in the lanes that sum_quarters wants. bytes is where the chunk begins, left
// how many bytes the row has from there.
GK_INLINE GK_TARGET_VNNI __m512i dot_chunk(int bits, const uint8_t *bytes, int64_t left, const int8_t *levels) {
  __m512i a0 = _mm512_loadu_si512(levels), a1 = _mm512_loadu_si512(levels + 64), zero = _mm512_setzero_si512();
  if (bits == 4) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i w = left >= 64 ? _mm512_loadu_si512(bytes) : _mm512_maskz_loadu_epi8(((__mmask64)1 << left) - 1, bytes);
    __m512i sum = _mm512_dpbusd_epi32(zero, _mm512_and_si512(w, low), a0);
    return _mm512_dpbusd_epi32(sum, _mm512_and_si512(_mm512_srli_epi16(w, 4), low), a1);
  }
  __m512i w0, w1;
  if (left >= 128) {
    w0 = _mm512_loadu_si512(bytes), w1 = _mm512_loadu_si512(bytes + 64);
  } else {
    w0 = left >= 64 ? _mm512_loadu_si512(bytes) : _mm512_maskz_loadu_epi8(((__mmask64)1 << left) - 1, bytes);
    w1 = left > 64 ? _mm512_maskz_loadu_epi8(((__mmask64)1 << (left - 64)) - 1, bytes + 64) : zero;
  }
  __m512i d0 = _mm512_dpbusd_epi32(zero, w0, a0), d1 = _mm512_dpbusd_epi32(zero, w1, a1);
  return _mm512_add_epi32(_mm512_shuffle_i32x4(d0, d1, 0x88), _mm512_shuffle_i32x4(d0, d1, 0xdd));
}

GK_INLINE GK_TARGET_VNNI __m512 add_block(__m512 y, __m512i sum, int32_t correction, float step, __m512 scale) {
  __m512 f = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_set1_epi32(correction)));
  return _mm512_fmadd_ps(f, _mm512_mul_ps(scale, _mm512_set1_ps(step)), y);
}

// One row of activations by one panel.
GK_INLINE GK_TARGET_VNNI void row_panel(const gk_nbits *job, int bits, int packed, const panel_place *p, const float *scales, int64_t row) {
  const int8_t *levels = job->levels + row * job->padded;
  const float *steps = job->steps + row * padded_blocks(job);
  const int32_t *sums = job->sums + row * padded_blocks(job);
  const uint8_t *w = p->weights;
  const char *next = p->next;
  const int64_t bytes = CHUNK * bits / 8, stride = packed ? bytes : p->row, block = job->block;
  __m512 y = _mm512_setzero_ps();
  __m512i whole = _mm512_setzero_si512();
  for (int64_t c = 0; c * CHUNK < job->padded; c++) {
    __m512i z[PANEL], q[4];
    int64_t left = packed || job->packed ? bytes : job->row_bytes - c * bytes;
    for (int i = 0; i < bits / 4 * PANEL; i++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
    if (left >= bytes) {
#pragma GCC unroll 16
      for (int i = 0; i < PANEL; i++) z[i] = dot_chunk(bits, w + i * stride, bytes, levels + c * CHUNK);
    } else {
      for (int i = 0; i < PANEL; i++) z[i] = dot_chunk(bits, w + i * stride, left, levels + c * CHUNK);
    }
    w += packed ? PANEL * bytes : p->chunk;
    sum_quarters(z, q);
    if (block == 32) {
      int64_t b = c * 4;
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) y = add_block(y, q[i], sums[b + i], steps[b + i], _mm512_loadu_ps(scales + (b + i) * 16));
    } else if (block == 64) {
      int64_t b = c * 2;
      y = add_block(y, _mm512_add_epi32(q[0], q[1]), sums[b], steps[b], _mm512_loadu_ps(scales + b * 16));
      y = add_block(y, _mm512_add_epi32(q[2], q[3]), sums[b + 1], steps[b + 1], _mm512_loadu_ps(scales + (b + 1) * 16));
    } else {
      whole = _mm512_add_epi32(whole, _mm512_add_epi32(_mm512_add_epi32(q[0], q[1]), _mm512_add_epi32(q[2], q[3])));
      int64_t end = (c + 1) * CHUNK, b = c * CHUNK / block;
      if (end % block == 0 || end >= job->padded) {
        y = add_block(y, whole, sums[b], steps[b], _mm512_loadu_ps(scales + b * 16));
        whole = _mm512_setzero_si512();
      }
    }
  }
  if (job->bias) y = _mm512_add_ps(y, _mm512_loadu_ps(job->bias + p->n0));
  _mm512_storeu_ps(job->y + row * job->n + p->n0, y);
}

GK_TARGET_VNNI static void multiply_rows(const gk_nbits *job, int64_t panel, int64_t end, float *scales) {
  for (; panel < end; panel++) {
    panel_place p = place_of(job, panel, scales);
    const float *by_block = job->packed ? p.scales : scales;
    if (!job->packed) panel_scales(job, p.n0, scales);
    fetch_scales(job, &p);
    for (int64_t r = 0; r < job->rows; r++) {
      if (job->bits == 8) row_panel(job, 8, 0, &p, by_block, r);
      else if (job->packed) row_panel(job, 4, 1, &p, by_block, r);
      else row_panel(job, 4, 0, &p, by_block, r);
    }
  }
}

// Weights of a panel, columns from..to, as signed bytes in the order of tiles: out [chunk][16 rows][128].
GK_INLINE GK_TARGET_VNNI void unpack_panel(const gk_nbits *job, int bits, const panel_place *p, int64_t from, int64_t to, int8_t *out) {
  const __m512i low = _mm512_set1_epi8(15), eight = _mm512_set1_epi8(8), half = _mm512_set1_epi8((char)128);
  const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  for (int64_t c = from / CHUNK; c < to / CHUNK; c++) {
    int64_t left = job->packed ? 128 : job->row_bytes - c * chunk_bytes(job);
    __mmask64 m0 = left >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << left) - 1;
    __mmask64 m1 = left >= 128 ? ~(__mmask64)0 : left <= 64 ? 0 : ((__mmask64)1 << (left - 64)) - 1;
    const uint8_t *w = p->weights + c * p->chunk;
#pragma GCC unroll 4
    for (int i = 0; i < PANEL; i++, w += p->row, out += CHUNK) {
      __m512i v = _mm512_maskz_loadu_epi8(m0, w);
      if (bits == 4) {
        __m512i lo = _mm512_sub_epi8(_mm512_and_si512(v, low), eight);
        __m512i hi = _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(v, 4), low), eight);
        _mm512_store_si512(out, _mm512_permutex2var_epi64(lo, first, hi));
        _mm512_store_si512(out + 64, _mm512_permutex2var_epi64(lo, second, hi));
      } else {
        _mm512_store_si512(out, _mm512_xor_si512(v, half));
        _mm512_store_si512(out + 64, _mm512_xor_si512(_mm512_maskz_loadu_epi8(m1, w + 64), half));
      }
    }
  }
}

// y[16 rows of weights][16 activations] += a block whose integer sums are in c.
GK_INLINE GK_TARGET_AMX void add_tile(__m512 y[16], const int32_t *c, const panel_place *p, int64_t block, const float *steps) {
  const float *scales = p->scales + block * p->scale_block;
  int64_t stride = p->scale_row;
  __m512 step = _mm512_loadu_ps(steps);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++)
    y[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(c + 16 * i)), _mm512_mul_ps(_mm512_set1_ps(scales[i * stride]), step), y[i]);
}

// sums = the products of a block of depth or 2 · depth columns.
#define MULTIPLY(sums, weights, levels, depth) \
  do { \
    _tile_zero(sums); \
    _tile_loadd(6, weights, CHUNK); \
    _tile_loadd(4, levels, 64); \
    _tile_dpbssd(sums, 6, 4); \
  } while (0)
#define MULTIPLY_CHUNK(sums, weights, levels) \
  do { \
    _tile_loadd(6, weights, CHUNK); \
    _tile_loadd(4, levels, 64); \
    _tile_dpbssd(sums, 6, 4); \
    _tile_loadd(7, (weights) + 64, CHUNK); \
    _tile_loadd(5, (levels) + 1024, 64); \
    _tile_dpbssd(sums, 7, 5); \
  } while (0)

// Adds the blocks of the chunk at a place, whose sums are in c.
GK_INLINE GK_TARGET_AMX void add_chunk(const gk_nbits *job, int block, __m512 y[16], int32_t c[4][256], const panel_place *p, const float *steps,
                                       int64_t at) {
  int64_t b = at / job->block, last = job->blocks - 1;
  // Behind the last block there is nothing: its steps are zero, and the scale is any that may be read.
  if (block == 32) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) add_tile(y, c[i], p, b + i < last ? b + i : last, steps + (b + i) * 16);
  } else if (block == 64) {
    add_tile(y, c[0], p, b, steps + b * 16);
    add_tile(y, c[1], p, b + 1 < last ? b + 1 : last, steps + (b + 1) * 16);
  } else if ((at + CHUNK) % job->block == 0 || at + CHUNK >= job->padded) {
    add_tile(y, c[0], p, b, steps + b * 16);
  }
}

// Sixteen activations by columns from..to of a panel; w is the panel from there, sum what came before. Tiles of a chunk are added
// while those of the next are computed, since what a tile has stored cannot be read at once.
GK_INLINE GK_TARGET_AMX void tile_panel(const gk_nbits *job, int block, const int8_t *w, const panel_place *p, int64_t from, int64_t to,
                                        int64_t tile, const char *next, float *sum) {
  const int8_t *levels = job->levels + tile * 16 * job->padded + from * 16;
  const float *steps = job->steps + tile * 16 * padded_blocks(job);
  int32_t c[2][4][256] __attribute__((aligned(64)));
  __m512 y[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) y[i] = _mm512_load_ps(sum + 16 * i);
  int turn = 0;
  for (int64_t at = from; at < to; at += CHUNK, w += CHUNK * PANEL, levels += CHUNK * 16, turn ^= 1) {
    // Panels lie one after the other: what is read next comes while this is computed.
    for (int i = 0; next && i < PANEL; i++) _mm_prefetch(next + i * 64, _MM_HINT_T1);
    if (next && job->bits == 8)
      for (int i = PANEL; i < 2 * PANEL; i++) _mm_prefetch(next + i * 64, _MM_HINT_T1);
    if (next) next += CHUNK * PANEL * job->bits / 8;
    if (block == 32) {
      MULTIPLY(0, w, levels, 32);
      MULTIPLY(1, w + 32, levels + 32 * 16, 32);
      MULTIPLY(2, w + 64, levels + 64 * 16, 32);
      MULTIPLY(3, w + 96, levels + 96 * 16, 32);
    } else if (block == 64) {
      MULTIPLY(0, w, levels, 64);
      MULTIPLY(1, w + 64, levels + 64 * 16, 64);
    } else {
      if (at % job->block == 0) _tile_zero(0);
      MULTIPLY_CHUNK(0, w, levels);
    }
    if (at > from) add_chunk(job, block, y, c[turn ^ 1], p, steps, at - CHUNK);
    _tile_stored(0, c[turn][0], 64);
    if (block <= 64) _tile_stored(1, c[turn][1], 64);
    if (block == 32) {
      _tile_stored(2, c[turn][2], 64);
      _tile_stored(3, c[turn][3], 64);
    }
  }
  add_chunk(job, block, y, c[turn ^ 1], p, steps, to - CHUNK);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) _mm512_store_ps(sum + 16 * i, y[i]);
}

// Writes a tile's results, which lie by row of weights, by activation.
GK_TARGET_VNNI static void store_tile(const gk_nbits *job, int64_t n0, int64_t tile, const float *sum) {
  __m512i t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) t[i] = _mm512_load_si512(sum + 16 * i);
  gk_transpose(t);
  int64_t rows = job->rows - tile * 16;
  for (int64_t r = 0; r < 16 && r < rows; r++) {
    __m512 v = _mm512_castsi512_ps(t[r]);
    if (job->bias) v = _mm512_add_ps(v, _mm512_loadu_ps(job->bias + n0));
    _mm512_storeu_ps(job->y + (tile * 16 + r) * job->n + n0, v);
  }
}

// Columns of a panel that are unpacked at once: with their activations they fit the first cache.
enum { SPAN = 1024 };

// Work: the unpacked span, 16 × 16 sums a tile of activations, and a panel's scales.
static size_t tiles_work(const gk_nbits *job) { return (size_t)(PANEL * SPAN + row_tiles(job) * 256 * 4 + (job->blocks + 4) * PANEL * 4); }

GK_INLINE GK_TARGET_AMX void multiply_tiles(const gk_nbits *job, int block, int64_t panel, int64_t end, void *work) {
  gk_tiles shapes = gk_tile_shapes(block < 64 ? block : 64);
  int8_t *w = work;
  float *sums = (float *)(w + PANEL * SPAN), *scales = sums + row_tiles(job) * 256;
  _tile_loadconfig(&shapes);
  for (; panel < end; panel++) {
    panel_place p = place_of(job, panel, scales);
    int64_t tiles = row_tiles(job);
    memset(sums, 0, (size_t)tiles * 256 * sizeof *sums);
    fetch_scales(job, &p);
    for (int64_t from = 0; from < job->padded; from += SPAN) {
      int64_t to = from + SPAN < job->padded ? from + SPAN : job->padded;
      if (job->bits == 4) unpack_panel(job, 4, &p, from, to, w);
      else unpack_panel(job, 8, &p, from, to, w);
      const char *next = p.next + from / CHUNK * PANEL * chunk_bytes(job);
      for (int64_t t = 0; t < tiles; t++) tile_panel(job, block, w, &p, from, to, t, t ? NULL : next, sums + t * 256);
    }
    for (int64_t t = 0; t < tiles; t++) store_tile(job, p.n0, t, sums + t * 256);
  }
  _tile_release();
}

GK_TARGET_AMX static void multiply_tiles_32(const gk_nbits *job, int64_t panel, int64_t end, void *work) { multiply_tiles(job, 32, panel, end, work); }
GK_TARGET_AMX static void multiply_tiles_64(const gk_nbits *job, int64_t panel, int64_t end, void *work) { multiply_tiles(job, 64, panel, end, work); }
GK_TARGET_AMX static void multiply_tiles_128(const gk_nbits *job, int64_t panel, int64_t end, void *work) { multiply_tiles(job, 128, panel, end, work); }

size_t gk_nbits_multiply_parts(const gk_nbits *job) {
  int64_t panels = (job->n + PANEL - 1) / PANEL;
  return (size_t)((panels + job->panels_a_task - 1) / job->panels_a_task);
}

void gk_nbits_multiply(void *state, size_t part) {
  const gk_nbits *job = state;
  int64_t panels = (job->n + PANEL - 1) / PANEL, panel = (int64_t)part * job->panels_a_task;
  int64_t end = panel + job->panels_a_task < panels ? panel + job->panels_a_task : panels;
  void *work = gk_scratch_take(tiled(job) ? tiles_work(job) : (size_t)(64 * (job->blocks + 8)));
  if (!work) {
    gk_failed(job->failed);
    return;
  }
  if (!tiled(job)) multiply_rows(job, panel, end, work);
  else if (job->block == 32) multiply_tiles_32(job, panel, end, work);
  else if (job->block == 64) multiply_tiles_64(job, panel, end, work);
  else multiply_tiles_128(job, panel, end, work);

  gk_scratch_give(work);
}

size_t gk_nbits_packed_bytes(const gk_nbits *job) { return (size_t)((job->n + PANEL - 1) / PANEL * panel_bytes(job)); }

GK_TARGET_VNNI void gk_nbits_pack(const gk_nbits *job, int64_t panel, uint8_t *packed) {
  panel_place p = place_of(job, panel, NULL);
  uint8_t *out = packed + panel * panel_bytes(job);
  for (int64_t at = 0; at < packed_weights(job) / PANEL; at += chunk_bytes(job)) {
    int64_t left = job->row_bytes - at < chunk_bytes(job) ? job->row_bytes - at : chunk_bytes(job);
    for (int64_t i = 0; i < PANEL; i++, out += chunk_bytes(job)) {
      memcpy(out, p.weights + i * p.row + at, (size_t)left);
      memset(out + left, 0, (size_t)(chunk_bytes(job) - left));
    }
  }
  if (!job->half) {
    panel_scales(job, p.n0, (float *)out);
    return;
  }
  for (int64_t b = 0; b < (job->blocks + 3) / 4 * 4; b++, out += PANEL * 2) {
    float scales[PANEL];
    for (int64_t i = 0; i < PANEL; i++) scales[i] = b < job->blocks ? p.scales[i * job->blocks + b] : 0;
    _mm256_storeu_si256((__m256i *)out, _mm512_cvtps_ph(_mm512_loadu_ps(scales), _MM_FROUND_TO_NEAREST_INT));
  }
}

GK_TARGET_VNNI int gk_nbits_half_scales(const gk_nbits *job) {
  for (int64_t i = 0; i < job->n * job->blocks; i += 16) {
    int64_t left = job->n * job->blocks - i;
    __m512 v = _mm512_maskz_loadu_ps(left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1), job->scales + i);
    if (_mm512_cmp_ps_mask(v, _mm512_cvtph_ps(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)), _CMP_NEQ_UQ)) return 0;
  }
  return 1;
}

#endif
