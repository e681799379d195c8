// See attention.h. The heads that share keys and values are rows of one product: a tile is 16 pairs of token and head.
//
// Products are of bfloat16 tiles, but a float32 factor is the sum of three bfloat16, of whose nine products the three smallest are left
// out: 24 bits of each factor count, and results are as near to exact ones as those of float32 arithmetic. Softmax is computed a block of keys at a time with
// running maxima (Milakov and Gimelshein 2018). Keys and values are turned into tiles as they are met, for a group of row tiles at once.
//
// A row's result depends on its own tokens alone, to the last bit: blocks begin at fixed places, and what a row must not see adds zero.
#include "attention.h"

#if defined(__x86_64__)

#include <math.h>

#include "scratch.h"
#include "x86.h"

enum { ROWS = 16, KEYS = 128, GROUP = 8, TILE = 16 * 32, PARTS = 3 };

static int64_t depth_of(int64_t dim) { return (dim + 31) / 32 * 32; }
static int64_t width_of(int64_t dim) { return (dim + 15) / 16 * 16; }

static int64_t fresh_of(const gk_attention *job, int64_t b) { return job->fresh ? job->fresh[b] : job->sequence; }

void gk_attention_plan(gk_attention *job) {
  int64_t share = job->heads / job->kv_heads, most = 1;
  for (int64_t b = 0; b < job->batch; b++) {
    int64_t tiles = (fresh_of(job, b) * share + ROWS - 1) / ROWS;
    if (tiles > most) most = tiles;
  }
  job->tiles = most;
  job->groups = (most + GROUP - 1) / GROUP;
}

// out = x with its first 2·half elements rotated by the angles of position (the two halves are a pair's parts).
static void rotate(const gk_attention *job, const float *x, int64_t position, float factor, float *out) {
  int64_t half = job->cos ? job->half : 0;
  const float *cos = job->cos + position * half, *sin = job->sin + position * half;
  for (int64_t i = 0; i < half; i++) {
    float a = x[i], b = x[i + half];
    out[i] = (a * cos[i] - b * sin[i]) * factor;
    out[i + half] = (b * cos[i] + a * sin[i]) * factor;
  }
  for (int64_t i = 2 * half; i < job->dim; i++) out[i] = x[i] * factor;
}

size_t gk_attention_extend_parts(const gk_attention *job) { return (size_t)(job->batch * job->kv_heads); }

void gk_attention_extend(void *state, size_t part) {
  const gk_attention *job = state;
  int64_t b = (int64_t)part / job->kv_heads, h = (int64_t)part % job->kv_heads, dim = job->dim;
  int64_t fresh = fresh_of(job, b), past = job->seqlens_k[b] + 1 - fresh;
  int64_t width = (job->heads + 2 * job->kv_heads) * dim;
  float *keys = job->key + (b * job->kv_heads + h) * job->capacity * dim, *values = job->value + (b * job->kv_heads + h) * job->capacity * dim;
  for (int64_t t = 0; t < fresh; t++) {
    const float *row = job->qkv + (b * job->sequence + t) * width;
    rotate(job, row + (job->heads + h) * dim, past + t, 1, keys + (past + t) * dim);
    memcpy(values + (past + t) * dim, row + (job->heads + job->kv_heads + h) * dim, (size_t)dim * sizeof(float));
  }
  int64_t share = job->heads / job->kv_heads;
  for (int64_t t = fresh; t < job->sequence; t++)
    memset(job->out + ((b * job->sequence + t) * job->heads + h * share) * dim, 0, (size_t)(share * dim) * sizeof(float));
}

// The nearest bfloat16 of a float32 vector pair, which is left with the rest.
GK_INLINE GK_TARGET_AMX __m512i nearest(__m512 *a, __m512 *b) {
  __m512i h = (__m512i)_mm512_cvtne2ps_pbh(*b, *a);
  *a = _mm512_sub_ps(*a, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(h)), 16)));
  *b = _mm512_sub_ps(*b, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(h, 1)), 16)));
  return h;
}

// The nearest bfloat16 of two float32 vectors, the even one's in the low half of a lane; the vectors are left with the rest.
GK_INLINE GK_TARGET_VNNI __m512i nearest_pair(__m512 *even, __m512 *odd) {
  const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32((int)0xffff0000);
  __m512i e = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(*even), half), upper);
  __m512i o = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(*odd), half), upper);
  *even = _mm512_sub_ps(*even, _mm512_castsi512_ps(e));
  *odd = _mm512_sub_ps(*odd, _mm512_castsi512_ps(o));
  return _mm512_or_si512(_mm512_srli_epi32(e, 16), o);
}

GK_INLINE __mmask16 first_lanes(int64_t count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1); }

// A block of keys as left operands: [key tile][chunk of 32 dims][part][16 keys][32]. Keys from count on are zero.
GK_TARGET_AMX static void load_keys(const float *keys, int64_t count, int64_t dim, uint16_t *out) {
  int64_t chunks = depth_of(dim) / 32;
  for (int64_t j = 0; j < KEYS; j++) {
    for (int64_t c = 0; c < chunks; c++) {
      int64_t left = j < count ? dim - 32 * c : 0;
      __m512 a = _mm512_maskz_loadu_ps(first_lanes(left), keys + j * dim + 32 * c);
      __m512 b = _mm512_maskz_loadu_ps(first_lanes(left - 16), keys + j * dim + 32 * c + 16);
      uint16_t *to = out + (j / 16 * chunks + c) * PARTS * TILE + j % 16 * 32;
      for (int p = 0; p < PARTS; p++) _mm512_store_si512(to + p * TILE, nearest(&a, &b));
    }
  }
}

// A block of values, transposed, as left operands: [dim tile][chunk of 32 keys][part][16 dims][32].
GK_TARGET_AMX static void load_values(const float *values, int64_t count, int64_t dim, uint16_t *out) {
  for (int64_t d = 0; d < dim; d += 16) {
    __mmask16 lanes = first_lanes(dim - d);
    for (int64_t c = 0; c < KEYS / 32; c++) {
      __m512i v[PARTS][16];
#pragma GCC unroll 16
      for (int64_t p = 0; p < 16; p++) {
        int64_t j = 32 * c + 2 * p;
        __m512 even = _mm512_maskz_loadu_ps(j < count ? lanes : 0, values + j * dim + d);
        __m512 odd = _mm512_maskz_loadu_ps(j + 1 < count ? lanes : 0, values + (j + 1) * dim + d);
        for (int i = 0; i < PARTS; i++) v[i][p] = nearest_pair(&even, &odd);
      }
      for (int i = 0; i < PARTS; i++) {
        uint16_t *to = out + ((d / 16 * (KEYS / 32) + c) * PARTS + i) * TILE;
        gk_transpose(v[i]);
#pragma GCC unroll 16
        for (int p = 0; p < 16; p++) _mm512_store_si512(to + p * 32, v[i][p]);
      }
    }
  }
}

// Tile operands of a group's queries, and what its rows have gathered so far.
typedef struct {
  int64_t first_row, last_row; // (token, head) pairs first_row..last_row−1 of the kv head
  int64_t first_place, last_place;
  int32_t place[ROWS] __attribute__((aligned(64)));
  float most[ROWS] __attribute__((aligned(64)));
  float sum[ROWS] __attribute__((aligned(64)));
  uint16_t *queries;    // [chunk of 32 dims][part][16 pairs of dims][16 rows][2]
  float *out;           // [dim][16 rows]
} row_tile;

GK_TARGET_AMX static void load_queries(const gk_attention *job, int64_t b, int64_t h, row_tile *tile) {
  int64_t dim = job->dim, share = job->heads / job->kv_heads, past = job->seqlens_k[b] + 1 - fresh_of(job, b);
  int64_t depth = depth_of(dim), width = (job->heads + 2 * job->kv_heads) * dim;
  float rows[ROWS][GK_ATTENTION_MAX_DIM] __attribute__((aligned(64)));
  const float factor = job->scale * 1.44269504088896340736f; // so that softmax is of powers of two
  for (int64_t r = 0; r < ROWS; r++) {
    int64_t row = tile->first_row + r;
    memset(rows[r], 0, (size_t)depth * sizeof(float));
    if (row < tile->last_row) {
      const float *x = job->qkv + (b * job->sequence + row / share) * width + (h * share + row % share) * dim;
      rotate(job, x, past + row / share, factor, rows[r]);
    } else {
      row = tile->last_row - 1;
    }
    tile->place[r] = (int32_t)(past + row / share);
    tile->most[r] = -1e30f;
    tile->sum[r] = 0;
  }
  tile->first_place = tile->place[0];
  tile->last_place = tile->place[ROWS - 1];
  for (int64_t c = 0; c < depth / 32; c++) {
    for (int p = 0; p < PARTS; p++) {
      __m512i v[16];
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; r++) {
        __m512 a = _mm512_load_ps(rows[r] + 32 * c), b = _mm512_load_ps(rows[r] + 32 * c + 16);
        v[r] = nearest(&a, &b);
        _mm512_store_ps(rows[r] + 32 * c, a);
        _mm512_store_ps(rows[r] + 32 * c + 16, b);
      }
      gk_transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) _mm512_store_si512(tile->queries + (c * PARTS + p) * TILE + i * 32, v[i]);
    }
  }
  memset(tile->out, 0, (size_t)(width_of(dim) * ROWS) * sizeof(float));
}

// out[tile][16][16] = the products of up to four left tiles, chunks deep, with one right tile a chunk. Operands are in parts.
GK_TARGET_AMX static void multiply(const uint16_t *left, int64_t tiles, int64_t chunks, const uint16_t *right, float *out) {
#define PRODUCTS(sums, i) \
  _tile_loadd(7, left + ((i)*chunks + c) * PARTS * TILE, 64); \
  _tile_dpbf16ps(sums, 7, 4); \
  _tile_dpbf16ps(sums, 7, 5); \
  _tile_dpbf16ps(sums, 7, 6); \
  _tile_loadd(7, left + (((i)*chunks + c) * PARTS + 1) * TILE, 64); \
  _tile_dpbf16ps(sums, 7, 4); \
  _tile_dpbf16ps(sums, 7, 5); \
  _tile_loadd(7, left + (((i)*chunks + c) * PARTS + 2) * TILE, 64); \
  _tile_dpbf16ps(sums, 7, 4);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t c = 0; c < chunks; c++) {
    _tile_loadd(4, right + c * PARTS * TILE, 64);
    _tile_loadd(5, right + (c * PARTS + 1) * TILE, 64);
    _tile_loadd(6, right + (c * PARTS + 2) * TILE, 64);
    PRODUCTS(0, 0)
    if (tiles > 1) { PRODUCTS(1, 1) }
    if (tiles > 2) { PRODUCTS(2, 2) }
    if (tiles > 3) { PRODUCTS(3, 3) }
  }
#undef PRODUCTS
  _tile_stored(0, out, 64);
  if (tiles > 1) _tile_stored(1, out + 256, 64);
  if (tiles > 2) _tile_stored(2, out + 512, 64);
  if (tiles > 3) _tile_stored(3, out + 768, 64);
}

// 2^x for x ≤ 0, within 2 units of the last place.
GK_INLINE GK_TARGET_VNNI __m512 power(__m512 x) {
  __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_set1_ps(1.54035304e-4f); // (ln 2)^n / n!
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.33335581e-3f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.61812911e-3f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.55041087e-2f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.40226507e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.93147181e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1));
  return _mm512_scalef_ps(y, whole);
}

// Turns scores [KEYS][16 rows] into weights as right operands [chunk of 32 keys][part][16 pairs][16 rows][2], and returns what earlier sums are multiplied by.
// Keys are at the places from on; limited says that not every row sees all of them.
GK_TARGET_VNNI static __m512 soften(const gk_attention *job, row_tile *tile, const float *scores, int64_t from, int limited, uint16_t *weights) {
  const __m512i place = _mm512_load_si512(tile->place);
  const __m512i first = job->window > 0 ? _mm512_sub_epi32(place, _mm512_set1_epi32((int)job->window)) : _mm512_set1_epi32(-1);
  __m512 before = _mm512_load_ps(tile->most), most = before, sum = _mm512_setzero_ps();
#define SEEN(j) \
  (limited ? _mm512_cmple_epi32_mask(_mm512_set1_epi32((int)(from + (j))), place) & \
                 _mm512_cmpgt_epi32_mask(_mm512_set1_epi32((int)(from + (j))), first) \
           : (__mmask16)0xffff)
  for (int j = 0; j < KEYS; j++) most = _mm512_mask_max_ps(most, SEEN(j), most, _mm512_load_ps(scores + j * ROWS));
  for (int j = 0; j < KEYS; j += 2) {
    __m512 even = _mm512_maskz_mov_ps(SEEN(j), power(_mm512_sub_ps(_mm512_load_ps(scores + j * ROWS), most)));
    __m512 odd = _mm512_maskz_mov_ps(SEEN(j + 1), power(_mm512_sub_ps(_mm512_load_ps(scores + (j + 1) * ROWS), most)));
    sum = _mm512_add_ps(sum, _mm512_add_ps(even, odd));
    for (int p = 0; p < PARTS; p++) _mm512_store_si512(weights + (j / 32 * PARTS + p) * TILE + j % 32 * ROWS, nearest_pair(&even, &odd));
  }
#undef SEEN
  __m512 factor = power(_mm512_sub_ps(before, most));
  _mm512_store_ps(tile->most, most);
  _mm512_store_ps(tile->sum, _mm512_fmadd_ps(_mm512_load_ps(tile->sum), factor, sum));
  return factor;
}

// What a part needs beside its row tiles.
typedef struct {
  uint16_t keys[PARTS * KEYS * GK_ATTENTION_MAX_DIM];
  uint16_t values[PARTS * KEYS * GK_ATTENTION_MAX_DIM];
  uint16_t weights[PARTS * KEYS * ROWS];
  float scores[KEYS * ROWS];
  float products[GK_ATTENTION_MAX_DIM * ROWS];
  row_tile tiles[GROUP];
  uint16_t queries[GROUP][PARTS * ROWS * GK_ATTENTION_MAX_DIM];
  float out[GROUP][GK_ATTENTION_MAX_DIM * ROWS];
} attend_work;

GK_TARGET_AMX static void attend_block(const gk_attention *job, attend_work *w, row_tile *tile, int64_t from) {
  int64_t dim = job->dim, chunks = depth_of(dim) / 32, dims = width_of(dim);
  for (int64_t k = 0; k < KEYS / 16; k += 4) multiply(w->keys + k * chunks * PARTS * TILE, 4, chunks, tile->queries, w->scores + k * 256);
  int limited = from + KEYS - 1 > tile->first_place || (job->window > 0 && from <= tile->last_place - job->window);
  __m512 factor = soften(job, tile, w->scores, from, limited, w->weights);
  for (int64_t d = 0; d < dims / 16; d += 4) {
    int64_t count = dims / 16 - d < 4 ? dims / 16 - d : 4;
    multiply(w->values + d * (KEYS / 32) * PARTS * TILE, count, KEYS / 32, w->weights, w->products + d * 256);
  }
  for (int64_t d = 0; d < dims; d++)
    _mm512_store_ps(tile->out + d * ROWS, _mm512_fmadd_ps(_mm512_load_ps(tile->out + d * ROWS), factor, _mm512_load_ps(w->products + d * ROWS)));
}

// Writes a tile's rows: sums by softmax's denominator, from [dim][row] to [row][dim].
GK_TARGET_VNNI static void finish(const gk_attention *job, int64_t b, int64_t h, const row_tile *tile) {
  int64_t dim = job->dim, share = job->heads / job->kv_heads;
  __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1), _mm512_load_ps(tile->sum));
  for (int64_t d = 0; d < dim; d += 16) {
    __m512i v[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) v[i] = _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(tile->out + (d + i) * ROWS), inverse));
    gk_transpose(v);
    for (int64_t row = tile->first_row; row < tile->last_row; row++) {
      float *to = job->out + ((b * job->sequence + row / share) * job->heads + h * share + row % share) * dim + d;
      _mm512_mask_storeu_ps(to, first_lanes(dim - d), _mm512_castsi512_ps(v[row - tile->first_row]));
    }
  }
}

size_t gk_attention_attend_parts(const gk_attention *job) { return (size_t)(job->batch * job->kv_heads * job->groups); }

GK_TARGET_AMX void gk_attention_attend(void *state, size_t part) {
  const gk_attention *job = state;
  // The last tokens see the most: they come first, so that no long part is left at the end.
  int64_t group = job->groups - 1 - (int64_t)part / (job->batch * job->kv_heads), rest = (int64_t)part % (job->batch * job->kv_heads);
  int64_t b = rest / job->kv_heads, h = rest % job->kv_heads, rows = fresh_of(job, b) * (job->heads / job->kv_heads), dim = job->dim;
  int64_t first = group * GROUP * ROWS, count = 0;
  if (first >= rows) return;
  attend_work *w = gk_scratch_take(sizeof *w);
  if (!w) __builtin_trap();
  for (; count < GROUP && first + count * ROWS < rows; count++) {
    row_tile *tile = &w->tiles[count];
    tile->first_row = first + count * ROWS;
    tile->last_row = tile->first_row + ROWS < rows ? tile->first_row + ROWS : rows;
    tile->queries = w->queries[count], tile->out = w->out[count];
    load_queries(job, b, h, tile);
  }
  gk_tiles shapes = gk_tile_shapes(64);
  _tile_loadconfig(&shapes);
  int64_t end = w->tiles[count - 1].last_place + 1, from = 0;
  if (job->window > 0 && w->tiles[0].first_place >= job->window) from = (w->tiles[0].first_place - job->window + 1) / KEYS * KEYS;
  const float *keys = job->key + (b * job->kv_heads + h) * job->capacity * dim, *values = job->value + (b * job->kv_heads + h) * job->capacity * dim;
  for (; from < end; from += KEYS) {
    load_keys(keys + from * dim, end - from, dim, w->keys);
    load_values(values + from * dim, end - from, dim, w->values);
    for (int64_t t = 0; t < count; t++)
      if (from <= w->tiles[t].last_place) attend_block(job, w, &w->tiles[t], from);
  }
  _tile_release();
  for (int64_t t = 0; t < count; t++) finish(job, b, h, &w->tiles[t]);
  gk_scratch_give(w);
}

#endif
