#include "edit_distance.h"

#include <algorithm>
#include <cstddef>

namespace {

constexpr int kWordBits = 64;

// A column of the dynamic program as the rows where it rises by one and where it falls by one.
struct Word {
    uint64_t rises, falls;
};

// The rows of one sequence, the pattern, that hold each symbol.
class Pattern {
  public:
    Pattern(int num_symbols, int64_t longest)
        : words_((longest + kWordBits - 1) / kWordBits), rows_(num_symbols * words_) {}

    void set(const int32_t* symbols, int64_t size) {
        clear();
        symbols_ = symbols;
        size_ = size;
        for (int64_t i = 0; i < size; ++i) at(i) |= uint64_t{1} << i % kWordBits;
    }

    // Myers (1999), in blocks. With Eq the rows of the pattern that hold the text's symbol, and h
    // the step that the row above a block takes, +1 above the first:
    //     Xv = Eq | falls                          Xh = (((Eq' & rises) + rises) ^ rises) | Eq'
    //     up = falls | ~(Xh | rises)               down = rises & Xh
    //     rises' = down' | ~(Xv | up')             falls' = up' & Xv
    // where Eq' has the lowest row too if h = -1; up' and down' are a row higher, with h below.
    int64_t distance(const int32_t* text, int64_t text_size) {
        if (size_ == 0) return text_size;
        int64_t num_words = (size_ + kWordBits - 1) / kWordBits, distance = size_;
        column_.assign(num_words, {~uint64_t{0}, 0});
        int last = (size_ - 1) % kWordBits;
        for (int64_t n = 0; n < text_size; ++n) {
            const uint64_t* equal = rows_.data() + text[n] * words_;
            uint64_t rose = 1, fell = 0;
            for (int64_t w = 0; w < num_words; ++w) {
                auto [rises, falls] = column_[w];
                uint64_t vertical = equal[w] | falls, eq = equal[w] | fell;
                uint64_t diagonal = (((eq & rises) + rises) ^ rises) | eq;
                uint64_t up = falls | ~(diagonal | rises), down = rises & diagonal;
                int top = w + 1 < num_words ? kWordBits - 1 : last;
                uint64_t next_rose = up >> top & 1, next_fell = down >> top & 1;
                up = up << 1 | rose;
                down = down << 1 | fell;
                column_[w] = {down | ~(vertical | up), up & vertical};
                rose = next_rose;
                fell = next_fell;
            }
            distance += static_cast<int64_t>(rose) - static_cast<int64_t>(fell);
        }
        return distance;
    }

  private:
    uint64_t& at(int64_t row) { return rows_[symbols_[row] * words_ + row / kWordBits]; }

    void clear() {
        for (int64_t i = 0; i < size_; ++i) at(i) = 0;
    }

    int64_t words_;
    std::vector<uint64_t> rows_;  // [num_symbols, words_]
    const int32_t* symbols_ = nullptr;
    int64_t size_ = 0;
    std::vector<Word> column_;
};

}  // namespace

void edit_distances(const int32_t* symbols, const std::vector<int64_t>& starts, int num_symbols,
                    int64_t* distances) {
    int64_t num = static_cast<int64_t>(starts.size()) - 1, longest = 0;
    for (int64_t i = 0; i < num; ++i) longest = std::max(longest, starts[i + 1] - starts[i]);
    Pattern pattern(num_symbols, longest);
    for (int64_t i = 0; i < num; ++i) {
        pattern.set(symbols + starts[i], starts[i + 1] - starts[i]);
        distances[i * num + i] = 0;
        for (int64_t j = 0; j < i; ++j)
            distances[i * num + j] = distances[j * num + i] =
                pattern.distance(symbols + starts[j], starts[j + 1] - starts[j]);
    }
}
