// Contexts by their hashes, and where the lists of their occurrences begin.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

// A gram is a number from 0, which it keeps until it is removed.
class GramTable {
  public:
    int find(uint64_t key) const;  // -1: there is none
    int add(uint64_t key);         // which must not be there
    void remove(int gram);

    int32_t& newest(int gram) { return grams_[gram].newest; }

    // What `find` reads first, and next.
    void prefetch_bucket(uint64_t key) const { __builtin_prefetch(&buckets_[place(key)]); }
    void prefetch_first(uint64_t key) const {
        int gram = buckets_[place(key)];
        if (gram >= 0) __builtin_prefetch(&grams_[gram]);
    }

    int64_t num_bytes() const {
        return grams_.capacity() * sizeof(Gram) + buckets_.capacity() * sizeof(int32_t);
    }

  private:
    struct Gram {
        uint64_t key;
        int32_t newest;
        int32_t next;  // in its bucket, or among the free ones
    };

    size_t place(uint64_t key) const { return key & (buckets_.size() - 1); }
    void rehash();

    std::vector<Gram> grams_;
    std::vector<int32_t> buckets_ = std::vector<int32_t>(64, -1);
    int32_t free_gram_ = -1;
};

inline int GramTable::find(uint64_t key) const {
    int gram = buckets_[place(key)];
    while (gram >= 0 && grams_[gram].key != key) gram = grams_[gram].next;
    return gram;
}

inline int GramTable::add(uint64_t key) {
    int gram = free_gram_;
    if (gram >= 0) {
        free_gram_ = grams_[gram].next;
    } else {
        if (grams_.size() == buckets_.size()) rehash();
        gram = static_cast<int>(grams_.size());
        grams_.emplace_back();
    }
    int32_t& bucket = buckets_[place(key)];
    grams_[gram] = {key, -1, bucket};
    bucket = gram;
    return gram;
}

inline void GramTable::remove(int gram) {
    int32_t* link = &buckets_[place(grams_[gram].key)];
    while (*link != gram) link = &grams_[*link].next;
    *link = grams_[gram].next;
    grams_[gram].next = free_gram_;
    free_gram_ = gram;
}

// Called where no gram is free: all of grams_ are in use.
inline void GramTable::rehash() {
    buckets_.assign(2 * buckets_.size(), -1);
    for (size_t gram = 0; gram < grams_.size(); ++gram) {
        int32_t& bucket = buckets_[place(grams_[gram].key)];
        grams_[gram].next = bucket;
        bucket = static_cast<int32_t>(gram);
    }
}
