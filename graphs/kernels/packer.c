// See packer.h. Packed weights are in pages of 2 MiB, of which a layer has a few, where the file's are in thousands of 4 KiB: a step
// reads all of them once, and looking pages up then takes a fifth of the time.
#define _GNU_SOURCE
#include "packer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

enum { LARGE = 2 << 20 };

void gk_packer_init(gk_packer *p) {
  p->first = NULL;
  p->last = &p->first;
  atomic_init(&p->stop, 0);
}

void gk_packer_add(gk_packer *p, gk_packing *layer) {
  layer->next = NULL;
  atomic_init(&layer->packed, NULL);
  *p->last = layer;
  p->last = &layer->next;
}

void gk_packer_stop(gk_packer *p) { atomic_store(&p->stop, 1); }

static size_t rounded(size_t bytes) { return (bytes + LARGE - 1) / LARGE * LARGE; }

#if defined(__linux__)

// Whether the system gives large pages to whom asks for them.
static int large_pages(void) {
  char mode[128] = "";
  FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r");
  if (!f) return 0;
  size_t n = fread(mode, 1, sizeof mode - 1, f);
  fclose(f);
  mode[n] = 0;
  return strstr(mode, "[never]") == NULL;
}

// Gives back the pages of what is not read any more, where they are a file's: touching them again reads them again.
static void forget(const void *start, size_t bytes) {
  uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = ((uintptr_t)start + page - 1) / page * page, to = ((uintptr_t)start + bytes) / page * page;
  if (from >= to) return;
  FILE *maps = fopen("/proc/self/maps", "r");
  if (!maps) return;
  char line[4352];
  while (fgets(line, sizeof line, maps)) {
    unsigned long low, high, inode;
    if (sscanf(line, "%lx-%lx %*s %*s %*s %lu", &low, &high, &inode) != 3 || from < low || from >= high) continue;
    // ONNX Runtime maps weights privately and does not write to them, so whoever reads them again finds what the file holds.
    if (inode != 0 && to <= high) madvise((void *)from, to - from, MADV_DONTNEED);
    break;
  }
  fclose(maps);
}

static uint8_t *allocate(size_t bytes) {
  // Mapped with room to align it, which is unmapped again.
  size_t size = rounded(bytes);
  uint8_t *all = mmap(NULL, size + LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) return NULL;
  uint8_t *start = (uint8_t *)(((uintptr_t)all + LARGE - 1) / LARGE * LARGE);
  if (start > all) munmap(all, (size_t)(start - all));
  munmap(start + size, (size_t)(all + LARGE - start));
  madvise(start, size, MADV_HUGEPAGE);
  return start;
}

void gk_packer_run(gk_packer *p) {
  if (!large_pages()) return;
  for (gk_packing *layer = p->first; layer && !atomic_load(&p->stop); layer = layer->next) {
    layer->bytes = layer->measure(layer->layer);
    uint8_t *out = allocate(layer->bytes);
    if (!out) return;
    layer->pack(layer->layer, out);
    atomic_store_explicit(&layer->packed, out, memory_order_release);
    for (int i = 0; i < 2; i++) forget(layer->sources[i], layer->source_bytes[i]);
  }
}

void gk_packing_free(gk_packing *layer) {
  uint8_t *packed = atomic_load(&layer->packed);
  if (packed) munmap(packed, rounded(layer->bytes));
  atomic_store(&layer->packed, NULL);
}

#else

void gk_packer_run(gk_packer *p) { (void)p; }
void gk_packing_free(gk_packing *layer) { (void)layer; }

#endif
