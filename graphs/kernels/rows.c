// See rows.h. Weights are read where they lie: [n, k] is the order in which tiles take the left operand, so nothing is packed.
#include "rows.h"

#if defined(__x86_64__)

#include "scratch.h"
#include "x86.h"

enum { PANEL = 32, DEPTH = 64 };

static int64_t panels(const gk_rows *job) { return (job->lay.n + PANEL - 1) / PANEL; }
static int64_t row_tiles(const gk_rows *job) { return (job->lay.rows + 15) / 16; }

void gk_rows_plan(gk_rows *job) {
  gk_nbits *lay = &job->lay;
  lay->bits = 8, lay->blocks = 1;
  lay->block = (lay->k + 127) / 128 * 128;
  lay->row_bytes = lay->k;
  job->panels_a_task = (256 << 10) / (PANEL * lay->k);
  if (job->panels_a_task > panels(job) / 8) job->panels_a_task = panels(job) / 8;
  if (job->panels_a_task < 1) job->panels_a_task = 1;
}

size_t gk_rows_work(const gk_rows *job) { return gk_nbits_work(&job->lay); }
void gk_rows_layout(gk_rows *job, void *work) { gk_nbits_layout(&job->lay, work); }

// A panel's weights with rows that end at a multiple of a tile's depth; those of the matrix itself where they already do.
static const int8_t *padded_panel(const gk_rows *job, int64_t n0, int64_t count, int8_t *copy, int64_t *stride) {
  int64_t k = job->lay.k, size = job->lay.padded;
  const int8_t *from = job->weights + n0 * k;
  *stride = k;
  if (k % DEPTH == 0) return from;
  *stride = size;
  for (int64_t i = 0; i < count; i++) {
    memcpy(copy + i * size, from + i * k, (size_t)k);
    memset(copy + i * size + k, 0, (size_t)(size - k));
  }
  return copy;
}

// y of sixteen activations and sixteen outputs, from their integer products c[output][activation].
GK_INLINE GK_TARGET_VNNI void store(const gk_rows *job, const int32_t *c, int64_t n0, int64_t tile) {
  const gk_nbits *lay = &job->lay;
  // One block and four more of padding, as gk_nbits_layout has it.
  __m512 steps = _mm512_loadu_ps(lay->steps + tile * 16 * 5);
  __m512i v[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) {
    __m512 scale = _mm512_mul_ps(_mm512_set1_ps(lay->scales[n0 + i]), steps);
    v[i] = _mm512_castps_si512(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(c + 16 * i)), scale));
  }
  gk_transpose(v);
  int64_t rows = lay->rows - tile * 16;
  for (int64_t r = 0; r < 16 && r < rows; r++) {
    __m512 y = _mm512_castsi512_ps(v[r]);
    if (lay->bias) y = _mm512_add_ps(y, _mm512_loadu_ps(lay->bias + n0));
    _mm512_storeu_ps(lay->y + (tile * 16 + r) * lay->n + n0, y);
  }
}

// c[4][16][16] = the products of a panel with one or two tiles of activations: of the first tile with both halves of the panel, then
// of the second. Panels lie one after the other: at each step ahead lines of the next one are fetched.
GK_INLINE GK_TARGET_AMX void multiply_panel(const int8_t *w, int64_t stride, int64_t second, const int8_t *a, const int8_t *a1, int64_t depth,
                                            int two, const char *next, int64_t ahead, int32_t *c) {
  const int8_t *w1 = w + second * stride;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < depth; k += DEPTH) {
    for (int64_t i = 0; i < ahead; i++) _mm_prefetch(next + k * PANEL + i * 64, _MM_HINT_T1);
    _tile_loadd(6, w + k, stride);
    _tile_loadd(4, a + k * 16, 64);
    _tile_dpbssd(0, 6, 4);
    _tile_loadd(7, w1 + k, stride);
    _tile_dpbssd(1, 7, 4);
    if (two) {
      _tile_loadd(5, a1 + k * 16, 64);
      _tile_dpbssd(2, 6, 5);
      _tile_dpbssd(3, 7, 5);
    }
  }
  _tile_stored(0, c, 64);
  _tile_stored(1, c + 256, 64);
  if (two) {
    _tile_stored(2, c + 512, 64);
    _tile_stored(3, c + 768, 64);
  }
}

GK_TARGET_AMX static void multiply_tiles(const gk_rows *job, int64_t panel, int64_t end, int8_t *copy) {
  int32_t c[1024] __attribute__((aligned(64)));
  gk_tiles shapes = gk_tile_shapes(DEPTH);
  int64_t tiles = row_tiles(job), pairs = (tiles + 1) / 2, depth = (job->lay.k + DEPTH - 1) / DEPTH * DEPTH, size = 16 * job->lay.padded;
  int64_t ahead = (PANEL + pairs - 1) / pairs;
  _tile_loadconfig(&shapes);
  for (; panel < end; panel++) {
    int64_t n0 = panel * PANEL, n = job->lay.n, count = n - n0 < PANEL ? n - n0 : PANEL, stride;
    if (count < 16) n0 = n - 16, count = 16;
    int64_t second = count - 16;
    const int8_t *w = padded_panel(job, n0, count, copy, &stride);
    const char *next = (const char *)(job->weights + (n0 + PANEL) * job->lay.k);
    for (int64_t t = 0; t < tiles; t += 2, next += ahead * 64) {
      const int8_t *a = job->lay.levels + t * size;
      int two = t + 1 < tiles;
      if (two) multiply_panel(w, stride, second, a, a + size, depth, 1, next, ahead, c);
      else multiply_panel(w, stride, second, a, a, depth, 0, next, ahead, c);
      for (int i = 0; i < 1 + two; i++) {
        store(job, c + i * 512, n0, t + i);
        store(job, c + i * 512 + 256, n0 + second, t + i);
      }
    }
  }
  _tile_release();
}

// Without tiles: up to FEW rows of activations by FEW rows of weights at once. Weights become unsigned by adding 128, which is taken off
// again; levels end in zeros, so what stands for weights behind a row's end does not matter.
enum { FEW = 4 };

GK_INLINE GK_TARGET_VNNI void multiply_few(const gk_rows *job, int64_t n0, int64_t outputs, int64_t first, int64_t rows) {
  const gk_nbits *lay = &job->lay;
  const __m512i half = _mm512_set1_epi8((char)128);
  const int8_t *w[FEW], *a[FEW];
  __m512i sums[FEW][FEW];
  for (int i = 0; i < FEW; i++) { // the last one again where there are fewer
    w[i] = job->weights + (n0 + (i < outputs ? i : outputs - 1)) * lay->k;
    a[i] = lay->levels + (first + (i < rows ? i : rows - 1)) * lay->padded;
  }
#pragma GCC unroll 4
  for (int i = 0; i < FEW; i++)
#pragma GCC unroll 4
    for (int j = 0; j < FEW; j++) sums[i][j] = _mm512_setzero_si512();
  for (int64_t k = 0; k < lay->k; k += DEPTH) {
    __mmask64 m = lay->k - k >= DEPTH ? ~(__mmask64)0 : ((__mmask64)1 << (lay->k - k)) - 1;
    __m512i weights[FEW];
#pragma GCC unroll 4
    for (int i = 0; i < FEW; i++) weights[i] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(m, w[i] + k), half);
#pragma GCC unroll 4
    for (int j = 0; j < FEW; j++) {
      __m512i levels = _mm512_loadu_si512(a[j] + k);
#pragma GCC unroll 4
      for (int i = 0; i < FEW; i++) sums[i][j] = _mm512_dpbusd_epi32(sums[i][j], weights[i], levels);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < FEW; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < FEW; j++) {
      if (i >= outputs || j >= rows) continue;
      int32_t sum = _mm512_reduce_add_epi32(sums[i][j]) - lay->sums[(first + j) * 5];
      float y = (float)sum * (lay->scales[n0 + i] * lay->steps[(first + j) * 5]);
      if (lay->bias) y += lay->bias[n0 + i];
      lay->y[(first + j) * lay->n + n0 + i] = y;
    }
  }
}

GK_TARGET_VNNI static void multiply_rows(const gk_rows *job, int64_t panel, int64_t end) {
  int64_t to = end * PANEL < job->lay.n ? end * PANEL : job->lay.n;
  for (int64_t n = panel * PANEL; n < to; n += FEW)
    for (int64_t r = 0; r < job->lay.rows; r += FEW)
      multiply_few(job, n, to - n < FEW ? to - n : FEW, r, job->lay.rows - r < FEW ? job->lay.rows - r : FEW);
}

size_t gk_rows_multiply_parts(const gk_rows *job) { return (size_t)((panels(job) + job->panels_a_task - 1) / job->panels_a_task); }

void gk_rows_multiply(void *state, size_t part) {
  const gk_rows *job = state;
  int64_t panel = (int64_t)part * job->panels_a_task, end = panel + job->panels_a_task;
  if (end > panels(job)) end = panels(job);
  if (!job->lay.amx || job->lay.rows < 2) {
    multiply_rows(job, panel, end);
    return;
  }
  void *work = gk_scratch_take((size_t)(PANEL * job->lay.padded));
  if (!work) {
    gk_failed(job->lay.failed);
    return;
  }
  multiply_tiles(job, panel, end, work);
  gk_scratch_give(work);
}

#endif
