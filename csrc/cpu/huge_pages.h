#pragma once
#include <cstddef>

namespace metasparse::cpu {

// Asks for huge pages under a large, freshly allocated result. Its first writing is otherwise bound
// by the system handing out 4 KB pages, which takes several times as long as the writing itself.
void advise_huge_pages(void* data, std::size_t bytes);

}  // namespace metasparse::cpu
