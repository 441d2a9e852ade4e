#pragma once
// How a task's images are cut into blocks of threads.
#include <algorithm>

#include "conv_pack.cuh"
#include "device.cuh"

namespace metasparse::cuda {

// A image of `channels` planes per sample.
struct Planes {
  int channels, height, width;

  __host__ __device__ int64_t size() const { return int64_t{height} * width; }
};

// Pieces of the units of a task's images. A slot is (image, row group, column).
struct Cut {
  int unit_rows, unit_columns;               // of a image
  int columns, groups, images;               // of a block
  int column_tiles, row_tiles, image_tiles;  // of a task
  int patch_rows, patch_columns;             // of the source, for one image of a block

  __host__ __device__ int plane() const { return images * patch_rows * patch_columns; }
  __host__ int64_t blocks() const { return int64_t{column_tiles} * row_tiles * image_tiles; }
};

// What the threads of a block all know. In shared memory: registers are for the sums.
template <class F>
struct alignas(16) Common {
  const F *source, *kernels;  // of the block's first image; of its list
  int count;                  // entries of the list
};

// Room for a list; what follows it is aligned to 16 bytes.
__host__ __device__ constexpr int64_t entry_room(int64_t sources) { return sources + sources % 2; }

template <class F, class Tile>
size_t shared_bytes(const Cut& cut, int64_t sources) {
  const size_t chunk =
      Tile::kChunk * (static_cast<size_t>(kDestinations) * kKernelRoom + cut.plane());
  return sizeof(Common<F>) + 2 * chunk * sizeof(F) +
         static_cast<size_t>(entry_room(sources)) * sizeof(Entry) +
         static_cast<size_t>(cut.plane()) * sizeof(int);
}

// Whole images where they are small, else bands; as many slots in use as shared memory allows.
template <class F, class Tile>
Cut make_cut(int64_t unit_rows, int64_t unit_columns, int64_t samples, int64_t sources) {
  Cut cut{};
  cut.unit_rows = static_cast<int>(unit_rows);
  cut.unit_columns = static_cast<int>(unit_columns);
  cut.columns = static_cast<int>(ceil_div(unit_columns, ceil_div(unit_columns, kWarpSize)));
  cut.column_tiles = static_cast<int>(ceil_div(unit_columns, cut.columns));
  const int all_groups = static_cast<int>(ceil_div(unit_rows, Tile::kUnits));
  const auto resize = [&](int groups, int images) {
    cut.groups = groups;
    cut.images = images;
    cut.row_tiles = static_cast<int>(ceil_div(all_groups, groups));
    cut.image_tiles = static_cast<int>(ceil_div(samples, images));
    cut.patch_rows = Tile::kStep * (groups * Tile::kUnits - 1) + Tile::kWindow;
    cut.patch_columns = Tile::kStep * (cut.columns - 1) + Tile::kWindow;
  };
  const int room = Tile::kSlots / cut.columns;
  const int tiles = static_cast<int>(ceil_div(all_groups, std::min(room, all_groups)));
  resize(static_cast<int>(ceil_div(all_groups, tiles)), 1);
  const bool whole = cut.column_tiles == 1 && cut.row_tiles == 1;
  if (whole) resize(cut.groups, static_cast<int>(std::min(int64_t{room / cut.groups}, samples)));
  const size_t limit = shared_limit();
  while (shared_bytes<F, Tile>(cut, sources) > limit && (cut.images > 1 || cut.groups > 1)) {
    if (cut.images > 1) {
      resize(cut.groups, cut.images - 1);
    } else {
      resize(cut.groups - 1, 1);
    }
  }
  return cut;
}

}  // namespace metasparse::cuda
