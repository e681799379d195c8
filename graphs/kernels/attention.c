// See attention.h. The heads that share keys and values are rows of one product: a tile is 16 pairs of token and head.
//
// Products are of bfloat16 tiles, but a float32 factor is the sum of several bfloat16, of whose products the smallest are left out. With
// three parts and six products 24 bits of each factor count, and results are as near to exact ones as those of float32 arithmetic; with
// two and three, for graphs whose other layers are quantized, 16 bits, where int8 activations have 8. Softmax is computed a block of keys at a time with
// running maxima (Milakov and Gimelshein 2018). Keys and values are turned into tiles as they are met, for a group of row tiles at once.
//
// A row's result depends on its own tokens alone, to the last bit, and not on how many of them a step brings, but for a single one
// (attention_one.c): blocks begin at fixed places, and what a row must not see adds zero.
#include "attention.h"

#if defined(__x86_64__)

#include <math.h>

#include "attention_rows.h"
#include "scratch.h"
#include "x86.h"

enum { ROWS = 16, KEYS = 128, GROUP = 16, TILE = 16 * 32, MOST_PARTS = 3 };

static int64_t depth_of(int64_t dim) { return (dim + 31) / 32 * 32; }
static int64_t width_of(int64_t dim) { return (dim + 15) / 16 * 16; }

// The place of a row's first token, after which the others come; where attention is open, the last place for all of them.
static int64_t first_place(const gk_attention *job, int64_t b) {
  if (job->open) return (job->keys ? job->keys[b] : job->key_length) - 1;
  return job->seqlens_k[b] + 1 - gk_fresh(job, b);
}

void gk_attention_plan(gk_attention *job) {
  int64_t share = job->heads / job->kv_heads, most = 1;
  for (int64_t b = 0; b < job->batch; b++) {
    int64_t tiles = (gk_fresh(job, b) * share + ROWS - 1) / ROWS;
    if (tiles > most) most = tiles;
  }
  job->tiles = most;
  job->groups = (most + GROUP - 1) / GROUP;
}

size_t gk_attention_extend_parts(const gk_attention *job) { return (size_t)(job->batch * job->kv_heads); }

void gk_attention_extend(void *state, size_t part) {
  const gk_attention *job = state;
  int64_t b = (int64_t)part / job->kv_heads, h = (int64_t)part % job->kv_heads, dim = job->dim;
  int64_t fresh = gk_fresh(job, b), past = job->seqlens_k[b] + 1 - fresh;
  float *keys = gk_cache(job, job->key, b, h), *values = gk_cache(job, job->value, b, h);
  for (int64_t t = 0; t < fresh; t++) {
    const float *row = job->query + b * job->query_batch + t * job->query_token;
    gk_rotate(job, row + (job->heads + h) * dim, past + t, 1, keys + (past + t) * dim);
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

// A block of keys as left operands: [key tile][chunk of 32 dims][part][16 keys][32]. Keys from count on are zero.
// The block's values, which are read next and not in their order, are fetched meanwhile.
GK_INLINE GK_TARGET_AMX void load_keys(int parts, const float *keys, const float *values, int64_t apart, int64_t count, int64_t dim, uint16_t *out) {
  int64_t chunks = depth_of(dim) / 32;
  for (int64_t j = 0; j < KEYS && j < (count + 31) / 32 * 32; j++) {
    for (int64_t i = 0; j < count && i < dim; i += 16) _mm_prefetch((const char *)(values + j * apart + i), _MM_HINT_T1);
    for (int64_t c = 0; c < chunks; c++) {
      int64_t left = j < count ? dim - 32 * c : 0;
      __m512 a = _mm512_maskz_loadu_ps(gk_first_lanes(left), keys + j * apart + 32 * c);
      __m512 b = _mm512_maskz_loadu_ps(gk_first_lanes(left - 16), keys + j * apart + 32 * c + 16);
      uint16_t *to = out + (j / 16 * chunks + c) * parts * TILE + j % 16 * 32;
      for (int p = 0; p < parts; p++) _mm512_store_si512(to + p * TILE, nearest(&a, &b));
    }
  }
}

// A block of values as right operands: [chunk of 32 keys][dim tile][part][16 pairs of keys][16 dims][2].
GK_INLINE GK_TARGET_AMX void load_values(int parts, const float *values, const float *next, int64_t apart, int64_t count, int64_t dim, uint16_t *out) {
  for (int64_t j = 0; j < KEYS && j < count; j += 2) {
    for (int64_t d = 0; d < dim; d += 16) {
      __mmask16 lanes = gk_first_lanes(dim - d);
      __m512 even = _mm512_maskz_loadu_ps(lanes, values + j * apart + d);
      __m512 odd = _mm512_maskz_loadu_ps(j + 1 < count ? lanes : 0, values + (j + 1) * apart + d);
      uint16_t *to = out + (j / 32 * (width_of(dim) / 16) + d / 16) * parts * TILE + j % 32 * 16;
      for (int p = 0; p < parts; p++) _mm512_store_si512(to + p * TILE, nearest_pair(&even, &odd));
      // The next block's keys.
      _mm_prefetch((const char *)(next + j * apart + d), _MM_HINT_T1);
      _mm_prefetch((const char *)(next + (j + 1) * apart + d), _MM_HINT_T1);
    }
  }
  // The rest of a chunk meets weights of zero, which not every bit pattern stays zero with.
  for (int64_t j = (count + 1) / 2 * 2; j < KEYS && j % 32 != 0; j += 2)
    for (int64_t d = 0; d < dim; d += 16)
      for (int p = 0; p < parts; p++)
        _mm512_store_si512(out + ((j / 32 * (width_of(dim) / 16) + d / 16) * parts + p) * TILE + j % 32 * 16, _mm512_setzero_si512());
}

// Tile operands of a group's queries, and what its rows have gathered so far.
typedef struct {
  int64_t first_row, last_row; // (token, head) pairs first_row..last_row−1 of the kv head
  int64_t first_place, last_place;
  int32_t place[ROWS] __attribute__((aligned(64)));
  float most[ROWS] __attribute__((aligned(64)));
  float sum[ROWS] __attribute__((aligned(64)));
  uint16_t *queries;    // [chunk of 32 dims][part][16 pairs of dims][16 rows][2]
  float *out;           // [16 rows][dims up to a multiple of 16]
} row_tile;

GK_INLINE GK_TARGET_AMX void load_queries(int parts, const gk_attention *job, int64_t b, int64_t h, row_tile *tile) {
  int64_t dim = job->dim, share = job->heads / job->kv_heads, place = first_place(job, b), depth = depth_of(dim);
  float rows[ROWS][GK_ATTENTION_MAX_DIM] __attribute__((aligned(64)));
  for (int64_t r = 0; r < ROWS; r++) {
    int64_t row = tile->first_row + r;
    memset(rows[r], 0, (size_t)depth * sizeof(float));
    if (row < tile->last_row) {
      const float *x = job->query + b * job->query_batch + row / share * job->query_token + (h * share + row % share) * dim;
      gk_rotate(job, x, place + row / share, job->scale * GK_LOG2_E, rows[r]);
    } else {
      row = tile->last_row - 1;
    }
    tile->place[r] = (int32_t)(job->open ? place : place + row / share);
    tile->most[r] = -1e30f;
    tile->sum[r] = 0;
  }
  tile->first_place = tile->place[0];
  tile->last_place = tile->place[ROWS - 1];
  for (int64_t c = 0; c < depth / 32; c++) {
    for (int p = 0; p < parts; p++) {
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
      for (int i = 0; i < 16; i++) _mm512_store_si512(tile->queries + (c * parts + p) * TILE + i * 32, v[i]);
    }
  }
  memset(tile->out, 0, (size_t)(width_of(dim) * ROWS) * sizeof(float));
}

// The products of a tile in three parts with up to four others, chunks deep: out[i] is where the other tile i's 16 × 16 sums go, in
// rows of row bytes. step is from one chunk to the next of the others, each parts tiles apart in a chunk or chunks · parts tiles.
// left says that the others are the left operands.
GK_INLINE GK_TARGET_AMX void multiply(int parts, int left, const uint16_t *one, const uint16_t *others, int64_t apart, int64_t step, int64_t count, int64_t chunks,
                                      float *out, int64_t out_apart, int64_t row) {
#define PRODUCT(sums, part) \
  do { \
    if (left) _tile_dpbf16ps(sums, 7, part); \
    else _tile_dpbf16ps(sums, part, 7); \
  } while (0)
#define PRODUCTS(i) \
  if (count > i) { \
    _tile_loadd(7, others + c * step + (i)*apart, 64); \
    PRODUCT(i, 4); \
    PRODUCT(i, 5); \
    if (parts > 2) PRODUCT(i, 6); \
    _tile_loadd(7, others + c * step + (i)*apart + TILE, 64); \
    PRODUCT(i, 4); \
    if (parts > 2) { \
      PRODUCT(i, 5); \
      _tile_loadd(7, others + c * step + (i)*apart + 2 * TILE, 64); \
      PRODUCT(i, 4); \
    } \
  }
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t c = 0; c < chunks; c++) {
    _tile_loadd(4, one + c * parts * TILE, 64);
    _tile_loadd(5, one + (c * parts + 1) * TILE, 64);
    if (parts > 2) _tile_loadd(6, one + (c * parts + 2) * TILE, 64);
    PRODUCTS(0)
    PRODUCTS(1)
    PRODUCTS(2)
    PRODUCTS(3)
  }
#undef PRODUCTS
#undef PRODUCT
  _tile_stored(0, out, row);
  if (count > 1) _tile_stored(1, out + out_apart, row);
  if (count > 2) _tile_stored(2, out + 2 * out_apart, row);
  if (count > 3) _tile_stored(3, out + 3 * out_apart, row);
}

// Turns the scores [keys][16 rows] of a block into weights as left operands [chunk of 32 keys][part][16 rows][32], and finds what
// earlier sums are multiplied by. Keys are at the places from on; limited says that not every row sees all of them.
GK_INLINE GK_TARGET_VNNI void soften(int parts, const gk_attention *job, row_tile *tile, const float *scores, int64_t from, int64_t keys, int limited,
                                     uint16_t *weights, float *factors) {
  const __m512i place = _mm512_load_si512(tile->place);
  const __m512i first = job->window > 0 ? _mm512_sub_epi32(place, _mm512_set1_epi32((int)job->window)) : _mm512_set1_epi32(-1);
  __m512 before = _mm512_load_ps(tile->most), most = before, sum = _mm512_setzero_ps();
#define SEEN(j) \
  (limited ? _mm512_cmple_epi32_mask(_mm512_set1_epi32((int)(from + (j))), place) & \
                 _mm512_cmpgt_epi32_mask(_mm512_set1_epi32((int)(from + (j))), first) \
           : (__mmask16)0xffff)
  for (int64_t j = 0; j < keys; j++) most = _mm512_mask_max_ps(most, SEEN(j), most, _mm512_load_ps(scores + j * ROWS));
  for (int64_t c = 0; c < keys / 32; c++) {
    __m512i v[MOST_PARTS][16];
#pragma GCC unroll 4
    for (int p = 0; p < 16; p++) {
      int64_t j = 32 * c + 2 * p;
      __m512 even = _mm512_maskz_mov_ps(SEEN(j), gk_power(_mm512_sub_ps(_mm512_load_ps(scores + j * ROWS), most)));
      __m512 odd = _mm512_maskz_mov_ps(SEEN(j + 1), gk_power(_mm512_sub_ps(_mm512_load_ps(scores + (j + 1) * ROWS), most)));
      sum = _mm512_add_ps(sum, _mm512_add_ps(even, odd));
      for (int i = 0; i < parts; i++) v[i][p] = nearest_pair(&even, &odd);
    }
    for (int i = 0; i < parts; i++) {
      gk_transpose(v[i]);
#pragma GCC unroll 16
      for (int r = 0; r < 16; r++) _mm512_store_si512(weights + (c * parts + i) * TILE + r * 32, v[i][r]);
    }
  }
#undef SEEN
  __m512 factor = gk_power(_mm512_sub_ps(before, most));
  _mm512_store_ps(factors, factor);
  _mm512_store_ps(tile->most, most);
  _mm512_store_ps(tile->sum, _mm512_fmadd_ps(_mm512_load_ps(tile->sum), factor, sum));
}

// What a part needs beside its row tiles.
typedef struct {
  uint16_t keys[MOST_PARTS * KEYS * GK_ATTENTION_MAX_DIM];
  uint16_t values[MOST_PARTS * KEYS * GK_ATTENTION_MAX_DIM];
  uint16_t weights[MOST_PARTS * KEYS * ROWS];
  float scores[KEYS * ROWS];
  float products[GK_ATTENTION_MAX_DIM * ROWS];
  row_tile tiles[GROUP];
  uint16_t queries[GROUP][MOST_PARTS * ROWS * GK_ATTENTION_MAX_DIM];
  float out[GROUP][GK_ATTENTION_MAX_DIM * ROWS];
} attend_work;

GK_INLINE GK_TARGET_AMX void attend_block(int parts, const gk_attention *job, attend_work *w, row_tile *tile, int64_t from, int64_t keys) {
  int64_t chunks = depth_of(job->dim) / 32, dims = width_of(job->dim);
  float factors[ROWS] __attribute__((aligned(64)));
  for (int64_t k = 0; k < keys / 16; k += 4)
    multiply(parts, 1, tile->queries, w->keys + k * chunks * parts * TILE, chunks * parts * TILE, parts * TILE, keys / 16 - k, chunks, w->scores + k * 256, 256, 64);
  if (from + keys - 1 > tile->first_place || (job->window > 0 && from <= tile->last_place - job->window))
    soften(parts, job, tile, w->scores, from, keys, 1, w->weights, factors);
  else soften(parts, job, tile, w->scores, from, keys, 0, w->weights, factors);
  for (int64_t d = 0; d < dims / 16; d += 4)
    multiply(parts, 0, w->weights, w->values + d * parts * TILE, parts * TILE, dims / 16 * parts * TILE, dims / 16 - d, keys / 32, w->products + d * 16, 16, dims * 4);
  for (int64_t r = 0; r < ROWS; r++) {
    __m512 factor = _mm512_set1_ps(factors[r]);
    for (int64_t d = r * dims; d < (r + 1) * dims; d += 16)
      _mm512_store_ps(tile->out + d, _mm512_fmadd_ps(_mm512_load_ps(tile->out + d), factor, _mm512_load_ps(w->products + d)));
  }
}

// Writes a tile's rows: sums by softmax's denominator.
GK_TARGET_VNNI static void finish(const gk_attention *job, int64_t b, int64_t h, const row_tile *tile) {
  int64_t dim = job->dim, share = job->heads / job->kv_heads;
  for (int64_t row = tile->first_row; row < tile->last_row; row++) {
    int64_t r = row - tile->first_row;
    float *to = job->out + ((b * job->sequence + row / share) * job->heads + h * share + row % share) * dim;
    __m512 inverse = _mm512_set1_ps(tile->sum[r] > 0 ? 1 / tile->sum[r] : 0);
    for (int64_t d = 0; d < dim; d += 16)
      _mm512_mask_storeu_ps(to + d, gk_first_lanes(dim - d), _mm512_mul_ps(_mm512_load_ps(tile->out + r * width_of(dim) + d), inverse));
  }
}

size_t gk_attention_attend_parts(const gk_attention *job) { return (size_t)(job->batch * job->kv_heads * job->groups); }

GK_INLINE GK_TARGET_AMX void attend(int parts, const gk_attention *job, size_t part) {
  // The last tokens see the most: they come first, so that no long part is left at the end.
  int64_t group = job->groups - 1 - (int64_t)part / (job->batch * job->kv_heads), rest = (int64_t)part % (job->batch * job->kv_heads);
  int64_t b = rest / job->kv_heads, h = rest % job->kv_heads, rows = gk_fresh(job, b) * (job->heads / job->kv_heads), dim = job->dim;
  int64_t first = group * GROUP * ROWS, count = 0;
  if (first >= rows) return;
  if (!job->open && gk_fresh(job, b) == 1) {
    if (first == 0) gk_attend_one(job, b, h);
    return;
  }
  attend_work *w = gk_scratch_take(sizeof *w);
  if (!w) {
    gk_failed(job->failed);
    return;
  }
  for (; count < GROUP && first + count * ROWS < rows; count++) {
    row_tile *tile = &w->tiles[count];
    tile->first_row = first + count * ROWS;
    tile->last_row = tile->first_row + ROWS < rows ? tile->first_row + ROWS : rows;
    tile->queries = w->queries[count], tile->out = w->out[count];
    load_queries(parts, job, b, h, tile);
  }
  gk_tiles shapes = gk_tile_shapes(64);
  _tile_loadconfig(&shapes);
  int64_t end = w->tiles[count - 1].last_place + 1, from = 0;
  if (job->window > 0 && w->tiles[0].first_place >= job->window) from = (w->tiles[0].first_place - job->window + 1) / KEYS * KEYS;
  const float *keys = gk_cache(job, job->key, b, h), *values = gk_cache(job, job->value, b, h);
  for (; from < end; from += KEYS) {
    load_keys(parts, keys + from * job->key_token, values + from * job->key_token, job->key_token, end - from, dim, w->keys);
    load_values(parts, values + from * job->key_token, keys + (from + KEYS) * job->key_token, job->key_token, end - from, dim, w->values);
    int64_t loaded = end - from < KEYS ? (end - from + 31) / 32 * 32 : KEYS;
    for (int64_t t = 0; t < count; t++)
      if (from <= w->tiles[t].last_place) attend_block(parts, job, w, &w->tiles[t], from, loaded);
  }
  _tile_release();
  for (int64_t t = 0; t < count; t++) finish(job, b, h, &w->tiles[t]);
  gk_scratch_give(w);
}

GK_TARGET_AMX static void attend_close(const gk_attention *job, size_t part) { attend(3, job, part); }
GK_TARGET_AMX static void attend_near(const gk_attention *job, size_t part) { attend(2, job, part); }

void gk_attention_attend(void *state, size_t part) {
  const gk_attention *job = state;
  if (job->near) attend_near(job, part);
  else attend_close(job, part);
}

#endif
