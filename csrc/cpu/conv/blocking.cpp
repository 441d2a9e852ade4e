#include "blocking.h"

#include <algorithm>
#include <numeric>

namespace metasparse::cpu {

namespace {

// Blocks of a task, from `least` on, so that the workers' shares differ by one in eight at most;
// as many as there are registers to split.
int64_t balanced(int64_t least, int64_t most, int64_t tasks, int64_t workers) {
  if (tasks * least >= 8 * workers) return least;
  const int64_t step = workers / std::gcd(tasks, workers);
  return std::max(least, std::min((least + step - 1) / step * step, most));
}

}  // namespace

TileBlocks::TileBlocks(int64_t images, int64_t tile_rows, int64_t tile_columns, int lanes,
                       int max_vectors, int64_t tasks, int64_t workers)
    : images_(images),
      rows_(tile_rows),
      columns_(tile_columns),
      lanes_(lanes),
      vectors_((images * tile_rows * tile_columns + lanes - 1) / lanes),
      count_(balanced((vectors_ + max_vectors - 1) / max_vectors, vectors_, tasks, workers)) {}

TileBlock TileBlocks::block(int64_t b, std::vector<TileRun>& runs) const {
  const int64_t first_vector = b * vectors_ / count_;
  const int64_t vectors = (b + 1) * vectors_ / count_ - first_vector;
  const int64_t begin = first_vector * lanes_;
  const int64_t width = vectors * lanes_;
  const int64_t end = std::min(images_ * rows_ * columns_, begin + width);

  runs.clear();
  int64_t row = begin / columns_ % rows_;
  int64_t column = begin % columns_;
  int64_t image = begin / (columns_ * rows_);
  for (int64_t tile = begin; tile < end;) {
    const int64_t count = std::min(columns_ - column, end - tile);
    runs.push_back({image, static_cast<int32_t>(tile - begin), static_cast<int32_t>(count),
                    static_cast<int32_t>(row), static_cast<int32_t>(column)});
    tile += count;
    column = 0;
    if (++row == rows_) {
      row = 0;
      ++image;
    }
  }
  if (end - begin < width) {
    runs.push_back(
        {-1, static_cast<int32_t>(end - begin), static_cast<int32_t>(width - (end - begin)), 0, 0});
  }
  return {runs.data(), static_cast<int32_t>(runs.size()), static_cast<int32_t>(vectors)};
}

}  // namespace metasparse::cpu
