// Weights laid out for reading, beside a graph that is already in use: until a layer's are ready it reads the file's.
#ifndef GLIMPSE_KERNELS_PACKER_H
#define GLIMPSE_KERNELS_PACKER_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

// One layer's weights. The layer fills it in before it is added, and frees it with gk_packing_free.
typedef struct gk_packing gk_packing;
struct gk_packing {
  void *layer;
  size_t (*measure)(void *layer);          // the packed form's size
  void (*pack)(void *layer, uint8_t *out); // lays it out
  const void *sources[2];                  // what is not read any more then
  size_t source_bytes[2];
  size_t bytes;                            // what measure found
  _Atomic(uint8_t *) packed;               // null until it is ready
  gk_packing *next;
};

typedef struct {
  gk_packing *first, **last;
  atomic_int stop;
} gk_packer;

void gk_packer_init(gk_packer *p);
void gk_packer_add(gk_packer *p, gk_packing *layer);
// Packs every layer added, one after the other; returns early after gk_packer_stop. Where the system has no large pages, which are
// half of the gain, it does nothing.
void gk_packer_run(gk_packer *p);
void gk_packer_stop(gk_packer *p);
void gk_packing_free(gk_packing *layer);

#endif
