// Tree attention for CPUs: the balanced tree, node means, the descent, and attention forward and backward.
//
// README.md beside this file derives the layout. One translation unit with a C interface and no dependency but OpenMP,
// so that any C++17 compiler builds it in seconds. Every template computes in T (float or double) and reads E (float,
// double or bfloat16). Loops over (sequence, head) or over their query chunks run in parallel; each output element is
// written by one thread in a fixed order, so results do not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

namespace {

constexpr int kTile = 64;  // queries of one tile
constexpr int kRows = 6;   // rows of a register block: 6 x 4 vectors fill 24 of 32 registers
constexpr int kVectors = 4;

struct Bfloat16 {
  uint16_t bits;
};

template <class T>
struct Lanes {
  static constexpr int count = 64 / sizeof(T);
  typedef T Vec __attribute__((vector_size(64)));
  typedef T Loose __attribute__((vector_size(64), aligned(sizeof(T)), may_alias));
};
template <class T>
using Vec = typename Lanes<T>::Vec;

template <class T>
inline Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Lanes<T>::Loose*>(p);
}
template <class T>
inline void store(T* p, Vec<T> x) {
  *reinterpret_cast<typename Lanes<T>::Loose*>(p) = x;
}
template <class T>
inline Vec<T> splat(T x) {
  return Vec<T>{} + x;
}

template <class T>
inline T sum(Vec<T> x) {
  constexpr int n = Lanes<T>::count;
  T part[n];
  store<T>(part, x);
  for (int width = n / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) part[i] += part[i + width];
  return part[0];
}

// One sum a row of the block, as one vector.
template <class T>
inline Vec<T> sum_rows(const Vec<T> (&rows)[Lanes<T>::count]) {
  Vec<T> out;
  for (int r = 0; r < Lanes<T>::count; ++r) out[r] = sum<T>(rows[r]);
  return out;
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
// Neighbours of two vectors added: the sums of a's pairs, then of b's.
inline Vec<float> add_pairs(Vec<float> a, Vec<float> b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

template <>
inline Vec<float> sum_rows<float>(const Vec<float> (&rows)[16]) {
  Vec<float> part[8];
  for (int r = 0; r < 8; ++r) part[r] = add_pairs(rows[2 * r], rows[2 * r + 1]);
  for (int width = 4; width > 0; width /= 2)
    for (int r = 0; r < width; ++r) part[r] = add_pairs(part[2 * r], part[2 * r + 1]);
  return part[0];
}
#endif
#endif

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(Bfloat16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline void narrow(float x, float& out) { out = x; }
inline void narrow(double x, double& out) { out = x; }
inline void narrow(float x, Bfloat16& out) {  // round to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  out.bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <class T>
inline Vec<T> max(Vec<T> a, Vec<T> b) {
  return a > b ? a : b;
}

inline Vec<double> exponential(Vec<double> x) {
  for (int i = 0; i < Lanes<double>::count; ++i) x[i] = std::exp(x[i]);
  return x;
}

// exp to 1 ulp or so: x = m ln 2 + r, |r| <= ln 2 / 2, a polynomial in r, 2^m put into the exponent. -inf gives 0.
inline Vec<float> exponential(Vec<float> x) {
  typedef int32_t Int __attribute__((vector_size(64)));
  const Vec<float> low = splat(-87.0f), high = splat(88.0f);
  const Int under = x < low;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Vec<float> magic = splat(12582912.0f);
  const Vec<float> shifted = x * 1.44269504f + magic;
  const Vec<float> m = shifted - magic;
  const Vec<float> r = (x - m * 0.693359375f) - m * -2.12194440e-4f;
  Vec<float> y = splat(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  const Int power = (__builtin_convertvector(m, Int) + 127) << 23;
  const Vec<float> scaled = y * (Vec<float>)power;
  const Int kept = (Int)scaled & ~under;
  return (Vec<float>)kept;
}

// A [sequence, head, position, width] tensor with any strides but the last, which is 1.
template <class E>
struct View {
  E* data;
  int64_t of_sequence, of_head, of_position;
  E* row(int64_t s, int64_t h, int64_t i) const { return data + s * of_sequence + h * of_head + i * of_position; }
};
template <class E>
View<E> view(const void* data, const int64_t* strides) {
  return {const_cast<E*>(static_cast<const E*>(data)), strides[0], strides[1], strides[2]};
}

}  // namespace

extern "C" {

// One call's shape; the Python side fills it. Pointers to nothing are null.
struct Problem {
  int64_t sequences, heads, length, width;     // S, H, n, K
  int64_t levels, bucket_size, leaves;         // halvings; positions of a causal leaf; number of leaves
  int64_t heights, near, beam, far;            // heights of nodes; near leaves, open nodes and summaries of a chunk
  int64_t chunk, chunks, window, globals;      // queries of a chunk, chunks, half-width, global places
  int64_t power_steps, by_queries, by_spread;  // split directions and scores that look at the queries and the spread
  int64_t causal, threads;
  const int64_t* lengths;                      // [S]
  const int64_t* far_heights;                  // [far] height of each summary place
  const int64_t* globals_at;                   // [S, globals], -1 = none
};

}  // extern "C"

namespace {

// Threads that have something to do; each holds buffers of a sequence's size.
int threads_for(const Problem& p, int64_t tasks) { return int(std::min(p.threads, tasks)); }

template <class T>
int64_t padded(int64_t width) {
  const int64_t lanes = Lanes<T>::count;
  return (width + lanes - 1) / lanes * lanes;
}

template <class T, class E>
inline void read_row(const E* from, int64_t width, int64_t stride, T* to) {
  for (int64_t d = 0; d < width; ++d) to[d] = widen(from[d]);
  for (int64_t d = width; d < stride; ++d) to[d] = 0;
}

template <class T>
inline T dot(const T* a, const T* b, int64_t stride) {
  Vec<T> total{};
  for (int64_t d = 0; d < stride; d += Lanes<T>::count) total += load(a + d) * load(b + d);
  return sum<T>(total);
}

template <class T>
inline void add_scaled(T* to, const T* x, T factor, int64_t stride) {
  for (int64_t d = 0; d < stride; d += Lanes<T>::count) store<T>(to + d, load(to + d) + load(x + d) * factor);
}

// ---------------------------------------------------------------------------------------------------------- the tree

// Halves one sequence's and head's keys again and again, depth first, so that the small nodes stay in the cache.
// A level reads a node's keys twice: once for their projections, once to move them to their halves and, on the way, to
// sum what the halves' own directions start from. The first projections of all levels are one product at the start.
template <class T>
class Splitter {
 public:
  Splitter(const Problem& problem, const T* directions)
      : p_(problem),
        stride_(padded<T>(problem.width)),
        levels_(padded<T>(problem.levels)),
        direction_(stride_),
        starts_(problem.width * levels_, T(0)) {
    const int64_t n = problem.length;
    for (auto& rows : rows_) rows.resize(n * stride_);
    for (auto& ids : ids_) ids.resize(n);
    first_projections_.resize(n * levels_);
    projection_.resize(n);
    scratch_.resize(n + 1);
    bins_.resize(n);
    weights_.resize(n);
    moves_.resize(n);
    sums_.resize((problem.levels + 1) * 4 * stride_);
    moments_.resize(problem.width * stride_);
    query_.resize(stride_);
    for (int64_t level = 0; level < problem.levels; ++level)
      for (int64_t d = 0; d < problem.width; ++d) starts_[d * levels_ + level] = directions[level * problem.width + d];
  }

  template <class E>
  void run(const View<E>& queries, const View<E>& keys, int64_t s, int64_t h, int32_t* order, int32_t* leaf_of) {
    length_ = p_.lengths[s];
    if (p_.by_queries) read_moments(queries, s, h);
    order_ = order;
    leaf_of_ = leaf_of;
    std::vector<T> centre(stride_, T(0));
    for (int64_t i = 0; i < length_; ++i) {
      T* row = &rows_[0][i * stride_];
      read_row(keys.row(s, h, i), p_.width, stride_, row);
      add_scaled(centre.data(), row, T(1), stride_);
      ids_[0][i] = int32_t(i);
    }
    for (T& x : centre) x /= T(length_);
    for (int64_t i = 0; i < length_; ++i) add_scaled(&rows_[0][i * stride_], centre.data(), T(-1), stride_);
    project_first();
    std::iota(moves_.begin(), moves_.begin() + length_, 0);
    if (p_.levels) move(0, 0, length_, 0, 0, &sums_[0]);
    split(0, 0, 1, &sums_[0]);
  }

 private:
  int64_t rank(int64_t node, int64_t level) const { return node * length_ >> level; }
  T first_projection(int64_t level, int32_t id) const { return first_projections_[id * levels_ + level]; }

  // `sums`: the node's keys added up, and added up with their first projections as weights.
  void split(int64_t level, int64_t node, int side, const T* sums) {
    const int64_t first = rank(node, level), count = rank(node + 1, level) - first;
    if (level == p_.levels) {
      for (int64_t i = first; i < first + count; ++i) {
        order_[i] = ids_[side][i];
        leaf_of_[ids_[side][i]] = int32_t(node);
      }
      return;
    }
    project(level, first, count, side, sums);
    const int64_t border = rank(2 * node + 1, level + 1) - first;
    sort_out(count, border);
    T* below = &sums_[(level + 1) * 4 * stride_];
    move(first, first, border, side, level + 1, below);
    move(first, first + border, count - border, side, level + 1, below + 2 * stride_, border);
    split(level + 1, 2 * node, 1 - side, below);
    split(level + 1, 2 * node + 1, 1 - side, below + 2 * stride_);
  }

  void project(int64_t level, int64_t first, int64_t count, int side, const T* sums) {
    T* p = projection_.data();
    for (int64_t i = 0; i < count; ++i) p[i] = first_projection(level, ids_[side][first + i]);
    for (int64_t step = 0; step < p_.power_steps; ++step) {
      T mean = 0;
      for (int64_t i = 0; i < count; ++i) mean += p[i];
      mean /= T(count);
      if (step == 0)
        for (int64_t d = 0; d < stride_; ++d) direction_[d] = sums[stride_ + d] - mean * sums[d];
      else
        weigh(&rows_[side][first * stride_], count, p, mean);
      if (p_.by_queries) turn_to_queries();
      const T norm = std::sqrt(dot(direction_.data(), direction_.data(), stride_));
      for (T& x : direction_) x /= std::max(norm, T(1e-12));
      multiply(&rows_[side][first * stride_], count, direction_.data(), p);
    }
    // A NaN would break the selection; it shows in the attention anyway.
    for (int64_t i = 0; i < count; ++i) p[i] = p[i] == p[i] ? p[i] : std::numeric_limits<T>::infinity();
  }

  // Sum of q q^T over up to 256 queries spread evenly: how much the logits of this head see of each direction.
  template <class E>
  void read_moments(const View<E>& queries, int64_t s, int64_t h) {
    const int64_t samples = std::min<int64_t>(length_, 256);
    std::fill(moments_.begin(), moments_.end(), T(0));
    for (int64_t i = 0; i < samples; ++i) {
      read_row(queries.row(s, h, (2 * i + 1) * length_ / (2 * samples)), p_.width, stride_, query_.data());
      for (int64_t d = 0; d < p_.width; ++d)
        add_scaled(&moments_[d * stride_], query_.data(), query_[d] / T(samples), stride_);
    }
  }

  void turn_to_queries() {
    std::copy(direction_.begin(), direction_.end(), query_.begin());
    for (int64_t d = 0; d < p_.width; ++d) direction_[d] = dot(&moments_[d * stride_], query_.data(), stride_);
  }

  // [position, level]: every key on every level's start direction
  void project_first() {
    int64_t i = 0;
    for (; i + 8 <= length_; i += 8) project_rows<8>(i);
    for (; i < length_; ++i) project_rows<1>(i);
  }

  template <int R>
  void project_rows(int64_t first) {
    for (int64_t v = 0; v < levels_; v += Lanes<T>::count) {
      Vec<T> total[R] = {};
      for (int64_t d = 0; d < p_.width; ++d)
        for (int r = 0; r < R; ++r) total[r] += load(&starts_[d * levels_ + v]) * rows_[0][(first + r) * stride_ + d];
      for (int r = 0; r < R; ++r) store<T>(&first_projections_[(first + r) * levels_ + v], total[r]);
    }
  }

  // p = rows direction
  void multiply(const T* rows, int64_t count, const T* direction, T* p) const {
    constexpr int L = Lanes<T>::count;
    int64_t i = 0;
    for (; i + L <= count; i += L) {  // as many rows as lanes: their partial sums are added up as one block
      Vec<T> part[L];
      for (int r = 0; r < L; ++r) {
        part[r] = load(rows + (i + r) * stride_) * load(direction);
        for (int64_t d = L; d < stride_; d += L) part[r] += load(rows + (i + r) * stride_ + d) * load(direction + d);
      }
      store<T>(p + i, sum_rows<T>(part));
    }
    for (; i < count; ++i) p[i] = dot(rows + i * stride_, direction, stride_);
  }

  // direction = sum of (p_i - mean) rows_i
  void weigh(const T* rows, int64_t count, const T* p, T mean) {
    std::fill(direction_.begin(), direction_.end(), T(0));
    for (int64_t i = 0; i < count; ++i) add_scaled(direction_.data(), rows + i * stride_, p[i] - mean, stride_);
  }

  // Lists the `border` smallest projections first, ties by lower position, then the others; both as they stood.
  void sort_out(int64_t count, int64_t border) {
    const T* p = projection_.data();
    const T threshold = select(count, border);
    int64_t ties = border;
    for (int64_t i = 0; i < count; ++i) ties -= p[i] < threshold;
    int64_t left = 0, right = border;
    for (int64_t i = 0; i < count; ++i) {
      const bool tie = p[i] == threshold && ties > 0;
      const bool goes_left = p[i] < threshold || tie;
      ties -= tie;
      moves_[goes_left ? left : right] = int32_t(i);
      left += goes_left;
      right += !goes_left;
    }
  }

  // The projection of rank `border`: a histogram finds the narrow range that holds it, so that few are compared.
  T select(int64_t count, int64_t border) {
    constexpr int64_t kBins = 512, kFew = 128;
    const T* p = projection_.data();
    T low = p[0], high = p[0];
    for (int64_t i = 0; i < count; ++i) {
      low = p[i] < low ? p[i] : low;
      high = p[i] > high ? p[i] : high;
    }
    const T scale = T(kBins - 1) / (high - low);
    int64_t kept = 0;
    if (count > kFew && scale > 0 && scale < std::numeric_limits<T>::max()) {
      int32_t bins[kBins] = {};
      for (int64_t i = 0; i < count; ++i) bins_[i] = int16_t((p[i] - low) * scale);
      for (int64_t i = 0; i < count; ++i) ++bins[bins_[i]];
      int64_t bin = 0;
      while (border >= bins[bin]) border -= bins[bin++];
      for (int64_t i = 0; i < count; ++i) {
        scratch_[kept] = p[i];
        kept += bins_[i] == bin;
      }
    } else {
      std::copy_n(p, count, scratch_.begin());
      kept = count;
    }
    std::nth_element(scratch_.begin(), scratch_.begin() + border, scratch_.begin() + kept);
    return scratch_[border];
  }

  // Moves the listed keys of the node at `from` to `to`, and sums them for their next level's direction.
  void move(int64_t from, int64_t to, int64_t count, int side, int64_t level, T* sums, int64_t listed = 0) {
    const int32_t* moves = &moves_[listed];
    for (int64_t i = 0; i < count; ++i) ids_[1 - side][to + i] = ids_[side][from + moves[i]];
    if (level == p_.levels) return;
    for (int64_t i = 0; i < count; ++i) weights_[i] = first_projection(level, ids_[1 - side][to + i]);
    const T* rows = &rows_[side][from * stride_];
    T* out = &rows_[1 - side][to * stride_];
    for (int64_t d = 0; d < stride_;) {
      const int64_t vectors = (stride_ - d) / Lanes<T>::count;
      if (vectors >= 4)
        move_columns<4>(rows, moves, count, out, sums, d);
      else if (vectors >= 2)
        move_columns<2>(rows, moves, count, out, sums, d);
      else
        move_columns<1>(rows, moves, count, out, sums, d);
      d += (vectors >= 4 ? 4 : vectors >= 2 ? 2 : 1) * Lanes<T>::count;
    }
  }

  template <int C>
  void move_columns(const T* rows, const int32_t* moves, int64_t count, T* out, T* sums, int64_t d) const {
    constexpr int L = Lanes<T>::count;
    Vec<T> plain[C] = {}, weighted[C] = {};
    for (int64_t i = 0; i < count; ++i)
      for (int c = 0; c < C; ++c) {
        const Vec<T> x = load(rows + moves[i] * stride_ + d + c * L);
        store<T>(out + i * stride_ + d + c * L, x);
        plain[c] += x;
        weighted[c] += x * weights_[i];
      }
    for (int c = 0; c < C; ++c) {
      store<T>(sums + d + c * L, plain[c]);
      store<T>(sums + stride_ + d + c * L, weighted[c]);
    }
  }

  const Problem& p_;
  const int64_t stride_, levels_;
  std::vector<T> direction_, starts_, rows_[2], first_projections_, projection_, scratch_, weights_, sums_,
      moments_, query_;
  std::vector<int32_t> ids_[2], moves_;
  std::vector<int16_t> bins_;
  int64_t length_ = 0;
  int32_t *order_ = nullptr, *leaf_of_ = nullptr;
};

template <class T, class E>
void build_tree(const Problem& p, const View<E>& queries, const View<E>& keys, const T* directions, int32_t* order,
                int32_t* leaf_of) {
#pragma omp parallel num_threads(threads_for(p, p.sequences * p.heads))
  {
    Splitter<T> splitter(p, directions);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < p.sequences * p.heads; ++task)
      splitter.run(queries, keys, task / p.heads, task % p.heads, order + task * p.length, leaf_of + task * p.length);
  }
}

// --------------------------------------------------------------------------------------------------------- the nodes

// Which keys the nodes of one sequence and head hold; heights count from the leaves, whose nodes come first.
struct Nodes {
  const Problem& p;
  int64_t length;
  const int32_t* order;    // position of each sorted key
  const int32_t* leaf_of;  // leaf of each position; both null if leaves are blocks of positions

  Nodes(const Problem& problem, int64_t task, const int32_t* order_, const int32_t* leaf_of_)
      : p(problem),
        length(problem.lengths[task / problem.heads]),
        order(problem.causal ? nullptr : order_ + task * problem.length),
        leaf_of(problem.causal ? nullptr : leaf_of_ + task * problem.length) {}

  int64_t first_rank(int64_t leaf) const { return p.causal ? leaf * p.bucket_size : leaf * length >> p.levels; }
  int64_t size(int64_t node, int64_t height) const {
    return first_rank((node + 1) << height) - first_rank(node << height);
  }
  int64_t position(int64_t rank) const { return p.causal ? rank : order[rank]; }
  int64_t leaf(int64_t position) const { return p.causal ? position / p.bucket_size : leaf_of[position]; }
  int64_t count(int64_t height) const { return p.leaves >> height; }
  int64_t offset(int64_t height) const {
    int64_t total = 0;
    for (int64_t h = 0; h < height; ++h) total += count(h);
    return total;
  }
};

int64_t total_nodes(const Problem& p) {
  int64_t total = 0;
  for (int64_t h = 0; h < p.heights; ++h) total += p.leaves >> h;
  return total;
}

// Squared distances of a leaf's keys to their mean, added up; by a second look at the keys, which are still in the cache,
// because a difference of large sums would lose the spread of keys that have much in common.
template <class T, class E>
T scatter_leaf(const View<E>& keys, int64_t s, int64_t h, const Nodes& tree, int64_t leaf, const T* sum, T* buffer) {
  const int64_t width = tree.p.width, stride = padded<T>(width), first = tree.first_rank(leaf);
  const int64_t end = tree.first_rank(leaf + 1);
  T total = 0;
  for (int64_t r = first; r < end; ++r) {
    read_row(keys.row(s, h, tree.position(r)), width, stride, buffer);
    add_scaled(buffer, sum, T(-1) / T(end - first), stride);
    total += dot(buffer, buffer, stride);
  }
  return total;
}

// What two siblings' means add to the squared distances within them.
template <class T>
T scatter_between(const T* left, const T* right, T left_size, T right_size, int64_t stride) {
  Vec<T> total{};
  for (int64_t d = 0; d < stride; d += Lanes<T>::count) {
    const Vec<T> apart = load(left + d) - load(right + d);
    total += apart * apart;
  }
  return sum<T>(total) * left_size * right_size / (left_size + right_size);
}

// Logs of every node's mean squared distance to its mean, from the leaves' sums; never below a millionth of the whole
// sequence's, so that a node of one key has a logarithm.
template <class T>
void find_spreads(const Nodes& tree, const T* means, int64_t row, T* spreads) {
  const int64_t stride = padded<T>(tree.p.width), heights = tree.p.heights;
  const auto joined = [&](int64_t height, int64_t node) {  // of node and node + 1 at a height
    const int64_t at = tree.offset(height) + node;
    return spreads[at] + spreads[at + 1] +
           scatter_between(means + at * row, means + (at + 1) * row, T(tree.size(node, height)),
                           T(tree.size(node + 1, height)), stride);
  };
  for (int64_t height = 1; height < heights; ++height)
    for (int64_t node = 0; node < tree.count(height); ++node)
      spreads[tree.offset(height) + node] = joined(height - 1, 2 * node);
  const T whole = joined(heights - 1, 0) / T(tree.length);
  const T floor = std::max(whole * T(1e-6), std::numeric_limits<T>::min());
  for (int64_t height = 0; height < heights; ++height)
    for (int64_t node = 0; node < tree.count(height); ++node) {
      T& spread = spreads[tree.offset(height) + node];
      spread = std::log(std::max(spread / T(tree.size(node, height)), floor));
    }
}

// Means of k, and of v where given, over every node: [task, node, parts, stride]; logs of the nodes' spreads where the
// descent wants them: [task, node].
template <class T, class E>
void mean_nodes(const Problem& p, const View<E>& keys, const View<E>* values, const int32_t* order,
                const int32_t* leaf_of, T* means, T* spreads) {
  const int64_t stride = padded<T>(p.width), parts = values ? 2 : 1, row = parts * stride, nodes = total_nodes(p);
#pragma omp parallel num_threads(threads_for(p, p.sequences * p.heads))
  {
    std::vector<T> buffer(stride);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < p.sequences * p.heads; ++task) {
      const Nodes tree(p, task, order, leaf_of);
      const int64_t s = task / p.heads, h = task % p.heads;
      T* out = means + task * nodes * row;
      std::fill_n(out, nodes * row, T(0));
      for (int64_t leaf = 0; leaf < p.leaves; ++leaf) {
        for (int64_t r = tree.first_rank(leaf); r < tree.first_rank(leaf + 1); ++r) {
          const int64_t at = tree.position(r);
          read_row(keys.row(s, h, at), p.width, stride, buffer.data());
          add_scaled(out + leaf * row, buffer.data(), T(1), stride);
          if (!values) continue;
          read_row(values->row(s, h, at), p.width, stride, buffer.data());
          add_scaled(out + leaf * row + stride, buffer.data(), T(1), stride);
        }
        if (p.by_spread)
          spreads[task * nodes + leaf] = scatter_leaf(keys, s, h, tree, leaf, out + leaf * row, buffer.data());
      }
      for (int64_t height = 1; height < p.heights; ++height) {
        T* level = out + tree.offset(height) * row;
        const T* below = out + tree.offset(height - 1) * row;
        for (int64_t node = 0; node < tree.count(height); ++node)
          for (int64_t d = 0; d < row; d += Lanes<T>::count)
            store<T>(level + node * row + d, load(below + 2 * node * row + d) + load(below + (2 * node + 1) * row + d));
      }
      for (int64_t height = 0; height < p.heights; ++height)
        for (int64_t node = 0; node < tree.count(height); ++node) {
          T* mean = out + (tree.offset(height) + node) * row;
          const T size = T(tree.size(node, height));
          for (int64_t d = 0; d < row; ++d) mean[d] /= size;
        }
      if (p.by_spread) find_spreads(tree, out, row, spreads + task * nodes);
    }
  }
}

// ------------------------------------------------------------------------------------------------------- the descent

// Mean of the queries that choose for a chunk: its own, or the last `chunk` up to its first if nothing may look ahead.
template <class T, class E>
void chunk_mean(const Problem& p, const View<E>& queries, int64_t s, int64_t h, int64_t start, int64_t length, T* mean,
                T* buffer) {
  const int64_t stride = padded<T>(p.width);
  const int64_t first = p.causal ? std::max<int64_t>(0, start - p.chunk + 1) : start;
  const int64_t end = p.causal ? start + 1 : std::min(start + p.chunk, length);
  std::fill_n(mean, stride, T(0));
  for (int64_t i = first; i < end; ++i) {
    read_row(queries.row(s, h, i), p.width, stride, buffer);
    add_scaled(mean, buffer, T(1), stride);
  }
  for (int64_t d = 0; d < stride; ++d) mean[d] /= T(end - first);
}

// Nodes that a chunk keeps (rising) and summarises; -1 fills unused places.
template <class T, class E>
void descend(const Problem& p, const View<E>& queries, const T* means, const T* spreads, int64_t row, int32_t* near,
             int32_t* far) {
  const int64_t stride = padded<T>(p.width), nodes = total_nodes(p);
  const T scale = T(1) / std::sqrt(T(p.width));
#pragma omp parallel num_threads(threads_for(p, p.sequences * p.heads * p.chunks))
  {
    std::vector<T> mean(stride), buffer(stride);
    std::vector<int64_t> kept, candidates;
    std::vector<std::pair<T, int64_t>> ranked;
#pragma omp for schedule(dynamic, 8)
    for (int64_t place = 0; place < p.sequences * p.heads * p.chunks; ++place) {
      const int64_t task = place / p.chunks, start = place % p.chunks * p.chunk;
      const int64_t s = task / p.heads, length = p.lengths[s];
      int32_t *near_out = near + place * p.near, *far_out = far + place * p.far;
      std::fill_n(near_out, p.near, -1);
      std::fill_n(far_out, p.far, -1);
      if (start >= length) continue;
      chunk_mean(p, queries, s, task % p.heads, start, length, mean.data(), buffer.data());
      kept.assign(p.causal ? 0 : 1, 0);
      int64_t place_of_far = 0;  // far places are grouped by height, the highest first
      for (int64_t height = p.heights - 1, offset = nodes; height >= 0; --height) {
        offset -= p.leaves >> height;
        candidates.clear();
        for (int64_t node : kept) candidates.insert(candidates.end(), {2 * node, 2 * node + 1});
        const int64_t past = start / (p.causal ? p.bucket_size : 1) >> height;
        if (p.causal && past % 2) candidates.push_back(past - 1);
        ranked.clear();
        const T* level = means + (task * nodes + offset) * row;
        for (int64_t node : candidates) {
          const T logit = dot(mean.data(), level + node * row, stride) * scale;
          const T score = p.by_spread ? logit + spreads[task * nodes + offset + node] : logit;
          ranked.emplace_back(score == score ? -score : std::numeric_limits<T>::infinity(), node);  // NaN comes last
        }
        // Candidates rise, so a stable sort leaves ties to the lower node.
        std::stable_sort(ranked.begin(), ranked.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
        const size_t keep = std::min<size_t>(height ? p.beam : p.near, ranked.size());
        for (size_t i = keep; i < ranked.size(); ++i) {
          while (p.far_heights[place_of_far] != height) ++place_of_far;
          far_out[place_of_far++] = int32_t(ranked[i].second);
        }
        kept.clear();
        for (size_t i = 0; i < keep; ++i) kept.push_back(ranked[i].second);
        std::sort(kept.begin(), kept.end());
      }
      for (size_t i = 0; i < kept.size(); ++i) near_out[i] = int32_t(kept[i]);
    }
  }
}

// ------------------------------------------------------------------------------------------- products of small tiles

// out[x][i] = sum over d of rows[x][d] columns[d][i] for x in [x0, x1) and the vectors [v0, v1) of the tile's queries.
template <class T, int R, int C>
inline void score_block(const T* rows, int64_t stride, int64_t width, const T* columns, T* out) {
  Vec<T> total[R][C] = {};
  for (int64_t d = 0; d < width; ++d) {
    Vec<T> column[C];
    for (int c = 0; c < C; ++c) column[c] = load(columns + d * kTile + c * Lanes<T>::count);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) total[r][c] += column[c] * rows[r * stride + d];
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store<T>(out + r * kTile + c * Lanes<T>::count, total[r][c]);
}

template <class T, int R>
inline void score_rows(const T* rows, int64_t stride, int64_t width, const T* columns, T* out, int v0, int v1) {
  for (int v = v0; v < v1;) {
    const T* at = columns + v * Lanes<T>::count;
    T* to = out + v * Lanes<T>::count;
    switch (std::min(v1 - v, kVectors)) {
      case 4: score_block<T, R, 4>(rows, stride, width, at, to); v += 4; break;
      case 3: score_block<T, R, 3>(rows, stride, width, at, to); v += 3; break;
      case 2: score_block<T, R, 2>(rows, stride, width, at, to); v += 2; break;
      default: score_block<T, R, 1>(rows, stride, width, at, to); v += 1;
    }
  }
}

template <class T>
void score(const T* rows, int64_t stride, int64_t width, const T* columns, T* out, int64_t count, int v0, int v1) {
  int64_t x = 0;
  for (; x + kRows <= count; x += kRows)
    score_rows<T, kRows>(rows + x * stride, stride, width, columns, out + x * kTile, v0, v1);
  for (; x < count; ++x) score_rows<T, 1>(rows + x * stride, stride, width, columns, out + x * kTile, v0, v1);
}

// out[r][d] += sum over j in [j0, j1) of weights[j * by_term + r * by_row] terms[j][d] for R rows.
template <class T, int R, int C>
inline void mix_block(const T* weights, int64_t by_term, int64_t by_row, const T* terms, int64_t stride, int64_t j0,
                      int64_t j1, Vec<T> (&total)[R][C]) {
  for (int64_t j = j0; j < j1; ++j) {
    Vec<T> term[C];
    for (int c = 0; c < C; ++c) term[c] = load(terms + j * stride + c * Lanes<T>::count);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) total[r][c] += term[c] * weights[j * by_term + r * by_row];
  }
}

struct Range {
  int64_t first, end;
};

// R rows of sums over two ranges of terms, added to out[r].
template <class T, int R, int C>
inline void mix_rows(const T* weights, int64_t by_term, int64_t by_row, const T* terms, int64_t stride, Range a, Range b,
                     T* const* out) {
  constexpr int L = Lanes<T>::count;
  for (int64_t d = 0; d < stride; d += C * L) {
    Vec<T> total[R][C] = {};
    mix_block<T, R, C>(weights, by_term, by_row, terms + d, stride, a.first, a.end, total);
    mix_block<T, R, C>(weights, by_term, by_row, terms + d, stride, b.first, b.end, total);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) store<T>(out[r] + d + c * L, load(out[r] + d + c * L) + total[r][c]);
  }
}

template <class T, int R>
inline void mix(const T* weights, int64_t by_term, int64_t by_row, const T* terms, int64_t stride, Range a, Range b,
                T* const* out) {
  const int64_t vectors = stride / Lanes<T>::count;
  if (vectors % 4 == 0) return mix_rows<T, R, 4>(weights, by_term, by_row, terms, stride, a, b, out);
  if (vectors % 3 == 0) return mix_rows<T, R, 3>(weights, by_term, by_row, terms, stride, a, b, out);
  if (vectors % 2 == 0) return mix_rows<T, R, 2>(weights, by_term, by_row, terms, stride, a, b, out);
  mix_rows<T, R, 1>(weights, by_term, by_row, terms, stride, a, b, out);
}

// ------------------------------------------------------------------------------------------------------ one query tile

// A column of the tile: an exact key or a summary, and the queries of the tile that count it.
struct Column {
  int64_t source;     // position of a key, or -1 - node of a summary
  int32_t summary;    // which summary place stands for this key where it is not exact; -1 = none
  int16_t from, to;   // queries that see it
  int16_t skip, skip_to;  // less those in between: a global token that their window holds already
};

// Gathers a chunk's keys once and computes its tiles of up to 64 queries.
template <class T, class E>
class Tile {
 public:
  Tile(const Problem& problem, const T* means)
      : p_(problem), stride_(padded<T>(problem.width)), nodes_(total_nodes(problem)), means_(means) {
    const int64_t left = problem.causal ? std::max(problem.window, problem.bucket_size - 1) : problem.window;
    const int64_t extra = std::min<int64_t>(kTile + left + std::max(problem.window, problem.chunk), problem.length);
    const int64_t leaf = problem.causal ? problem.bucket_size : (problem.length >> problem.levels) + 1;
    const int64_t most = problem.near * leaf + problem.far + extra + problem.globals + kRows;
    keys_.resize(most * stride_);
    values_.resize(most * stride_);
    weights_.resize(most * kTile);
    counts_.resize(problem.far * kTile);
    columns_.reserve(most);
    query_.resize(kTile * stride_);
    turned_.resize(stride_ * kTile);
  }

  void open_chunk(const View<E>& keys, const View<E>& values, int64_t task, const Nodes& tree, const int32_t* near,
                  const int32_t* far) {
    key_view_ = &keys;
    value_view_ = &values;
    task_ = task;
    tree_ = &tree;
    columns_.clear();
    spans_.clear();
    far_sizes_.clear();
    for (int64_t i = 0; i < p_.near; ++i) {
      if (near[i] < 0) continue;
      spans_.push_back({near[i], near[i] + 1, kNear});
      for (int64_t r = tree.first_rank(near[i]); r < tree.first_rank(near[i] + 1); ++r)
        columns_.push_back({tree.position(r), -1, 0, kTile, 0, 0});
    }
    summaries_ = columns_.size();
    for (int64_t i = 0; i < p_.far; ++i) {
      if (far[i] < 0) continue;
      const int64_t height = p_.far_heights[i], node = far[i];
      spans_.push_back({node << height, (node + 1) << height, int32_t(far_sizes_.size())});
      columns_.push_back({-1 - (tree.offset(height) + node), int32_t(far_sizes_.size()), 0, kTile, 0, 0});
      far_sizes_.push_back(tree.size(node, height));
    }
    std::sort(spans_.begin(), spans_.end(), [](const Span& a, const Span& b) { return a.first < b.first; });
    fixed_ = columns_.size();
    pack(0, fixed_);
  }

  // Queries [start, start + count) of a chunk that begins at `chunk_start`.
  void open_tile(const View<E>& queries, int64_t start, int64_t count, int64_t chunk_start) {
    count_ = count;
    vectors_ = int((count + Lanes<T>::count - 1) / Lanes<T>::count);
    columns_.resize(fixed_);
    const int64_t own = chunk_start / std::max<int64_t>(p_.bucket_size, 1) * p_.bucket_size;
    add_globals(start, own);
    window_ = columns_.size();
    add_window(start, own);
    pack(fixed_, columns_.size());
    read_queries(queries, start);
    count_summaries();
  }

  // Logits of all pairs, -inf where a query does not count a column.
  void score_all() {
    score(keys_.data(), stride_, p_.width, turned_.data(), weights_.data(), fixed_, 0, vectors_);
    for (size_t f = 0; f < far_sizes_.size(); ++f) {
      T* row = &weights_[(summaries_ + f) * kTile];
      for (int64_t i = 0; i < count_; ++i) row[i] += counts_[f * kTile + i];
    }
    score_band(keys_.data(), turned_.data(), weights_.data(), -std::numeric_limits<T>::infinity());
  }

  // Rows of `out` = rows of the extra columns times a matrix, computed by blocks of columns and masked with `hidden`.
  void score_band(const T* rows, const T* matrix, T* out, T hidden) {
    constexpr int L = Lanes<T>::count;
    for (size_t x = fixed_; x < columns_.size(); x += kRows) {
      const size_t end = std::min(columns_.size(), x + kRows);
      int from = kTile, to = 0;
      for (size_t c = x; c < end; ++c) {
        from = std::min<int>(from, columns_[c].from);
        to = std::max<int>(to, columns_[c].to);
      }
      const int v0 = from / L, v1 = std::max(v0, (to + L - 1) / L);
      score(rows + x * stride_, stride_, p_.width, matrix, out + x * kTile, int64_t(end - x), v0, v1);
      for (size_t c = x; c < end; ++c) {
        T* row = out + c * kTile;
        std::fill(row, row + columns_[c].from, hidden);
        std::fill(row + columns_[c].skip, row + columns_[c].skip_to, hidden);
        std::fill(row + std::min<int>(columns_[c].to, kTile), row + kTile, hidden);
      }
    }
  }

  // Softmax over the columns, up to each query's factor in `factors`; `lse` gets the log of the sum.
  void normalise(T* lse, T* factors) {
    constexpr int L = Lanes<T>::count;
    for (int v = 0; v < vectors_; ++v) {
      T* at = &weights_[v * L];
      Vec<T> most = splat(-std::numeric_limits<T>::infinity());
      for (size_t x = 0; x < columns_.size(); ++x) most = max<T>(most, load(at + x * kTile));
      Vec<T> total{};
      for (size_t x = 0; x < columns_.size(); ++x) {
        const Vec<T> weight = exponential(load(at + x * kTile) - most);
        store<T>(at + x * kTile, weight);
        total += weight;
      }
      store<T>(factors + v * L, T(1) / total);
      for (int i = 0; i < L && v * L + i < count_; ++i) lse[v * L + i] = most[i] + std::log(total[i]);
    }
  }

  // The same weights from a known log of the sum.
  void normalise_with(const T* lse) {
    constexpr int L = Lanes<T>::count;
    for (int v = 0; v < vectors_; ++v) {
      T shift[L];
      for (int i = 0; i < L; ++i) shift[i] = v * L + i < count_ ? lse[v * L + i] : std::numeric_limits<T>::infinity();
      const Vec<T> by = load<T>(shift);
      for (size_t x = 0; x < columns_.size(); ++x) {
        T* at = &weights_[x * kTile + v * L];
        store<T>(at, exponential(load(at) - by));
      }
    }
  }

  // out[i] += sum over columns of weights[x][i] rows[x]
  void mix_queries(const T* weights, const T* rows, T* out) {
    size_t first = window_, end = window_;
    for (int64_t i = 0; i < count_; i += kRows) {
      const int64_t rows_here = std::min<int64_t>(kRows, count_ - i);
      while (first < columns_.size() && columns_[first].to <= i) ++first;
      end = std::max(end, first);
      while (end < columns_.size() && columns_[end].from < i + rows_here) ++end;
      const Range fixed{0, int64_t(window_)}, band{int64_t(first), int64_t(end)};
      T* to[kRows];
      for (int64_t r = 0; r < rows_here; ++r) to[r] = out + (i + r) * stride_;
      if (rows_here == kRows) {
        mix<T, kRows>(weights + i, kTile, 1, rows, stride_, fixed, band, to);
      } else {
        for (int64_t r = 0; r < rows_here; ++r) mix<T, 1>(weights + i + r, kTile, 1, rows, stride_, fixed, band, to + r);
      }
    }
  }

  // to[x] += sum over queries of weights[x][i] rows[i]
  void mix_columns(const T* weights, const T* rows, T* const* to) {
    const Range none{0, 0};
    for (size_t x = 0; x < columns_.size();) {
      Range seen{kTile, 0};
      const size_t width = x + kRows <= columns_.size() ? kRows : 1;
      for (size_t c = x; c < x + width; ++c) {
        seen.first = std::min<int64_t>(seen.first, columns_[c].from);
        seen.end = std::max<int64_t>(seen.end, std::min<int64_t>(columns_[c].to, count_));
      }
      if (width == kRows)
        mix<T, kRows>(weights + x * kTile, 1, kTile, rows, stride_, seen, none, to + x);
      else
        mix<T, 1>(weights + x * kTile, 1, kTile, rows, stride_, seen, none, to + x);
      x += width;
    }
  }

  const std::vector<Column>& columns() const { return columns_; }
  size_t fixed() const { return fixed_; }
  int vectors() const { return vectors_; }
  T* weights() { return weights_.data(); }
  const T* keys() const { return keys_.data(); }
  const T* values() const { return values_.data(); }
  const T* query() const { return query_.data(); }  // scaled, [query, width]

 private:
  static constexpr int32_t kNear = -2, kNone = -1;
  struct Span {
    int64_t first, end;
    int32_t what;
  };

  // Which summary place holds a leaf, kNear if it is read exactly, kNone if nothing holds it.
  int32_t holder(int64_t leaf) const {
    auto after = std::upper_bound(spans_.begin(), spans_.end(), leaf,
                                  [](int64_t at, const Span& span) { return at < span.first; });
    if (after == spans_.begin()) return kNone;
    --after;
    return leaf < after->end ? after->what : kNone;
  }

  // Queries of the tile whose own window holds a position.
  Range in_window(int64_t position, int64_t start, int64_t own) const {
    int64_t first = p_.causal ? position : position - p_.window, end = position + p_.window + 1;
    if (p_.causal && position >= own) end = start + count_;
    first = std::min(std::max<int64_t>(first - start, 0), count_);
    return {first, std::max(first, std::min(end - start, count_))};
  }

  void add_globals(int64_t start, int64_t own) {
    const int64_t* at = p_.globals_at + task_ / p_.heads * p_.globals;
    for (int64_t g = 0; g < p_.globals; ++g) {
      if (at[g] < 0 || (p_.causal && at[g] >= start + count_)) continue;
      const int32_t what = holder(tree_->leaf(at[g]));
      if (what == kNear) continue;
      const Range seen = in_window(at[g], start, own);
      const int64_t from = p_.causal ? std::max<int64_t>(0, at[g] - start) : 0;
      columns_.push_back({at[g], what, int16_t(from), int16_t(count_), int16_t(seen.first), int16_t(seen.end)});
    }
  }

  void add_window(int64_t start, int64_t own) {
    const int64_t left = p_.causal ? std::min(start - p_.window, own) : start - p_.window;
    const int64_t end = std::min(tree_->length, start + count_ + (p_.causal ? 0 : p_.window));
    for (int64_t at = std::max<int64_t>(0, left); at < end; ++at) {
      const int32_t what = holder(tree_->leaf(at));
      const Range seen = in_window(at, start, own);
      if (what == kNear || seen.first == seen.end) continue;
      columns_.push_back({at, what, int16_t(seen.first), int16_t(seen.end), 0, 0});
    }
  }

  void pack(size_t first, size_t end) {
    const int64_t s = task_ / p_.heads, h = task_ % p_.heads;
    for (size_t x = first; x < end; ++x) {
      T *key = &keys_[x * stride_], *value = &values_[x * stride_];
      const int64_t source = columns_[x].source;
      if (source >= 0) {
        read_row(key_view_->row(s, h, source), p_.width, stride_, key);
        read_row(value_view_->row(s, h, source), p_.width, stride_, value);
      } else {
        const T* mean = means_ + (task_ * nodes_ + (-1 - source)) * 2 * stride_;
        std::memcpy(key, mean, stride_ * sizeof(T));
        std::memcpy(value, mean + stride_, stride_ * sizeof(T));
      }
    }
  }

  void read_queries(const View<E>& queries, int64_t start) {
    const T scale = T(1) / std::sqrt(T(p_.width));
    for (int64_t i = 0; i < kTile; ++i) {
      T* row = &query_[i * stride_];
      if (i < count_)
        read_row(queries.row(task_ / p_.heads, task_ % p_.heads, start + i), p_.width, stride_, row);
      else
        std::fill_n(row, stride_, T(0));
      for (int64_t d = 0; d < stride_; ++d) row[d] *= scale;
    }
    turn(query_.data(), turned_.data());
  }

  // Log counts: a summary stands for its keys less those that the query reads exactly.
  void count_summaries() {
    for (size_t f = 0; f < far_sizes_.size(); ++f) std::fill_n(&counts_[f * kTile], kTile, T(far_sizes_[f]));
    for (size_t x = fixed_; x < columns_.size(); ++x) {
      const Column& column = columns_[x];
      if (column.summary < 0) continue;
      T* row = &counts_[column.summary * kTile];
      for (int64_t i = column.from; i < column.to; ++i) row[i] -= i >= column.skip && i < column.skip_to ? T(0) : T(1);
    }
    for (size_t f = 0; f < far_sizes_.size(); ++f) {
      T* row = &counts_[f * kTile];
      T last = -1, log = 0;
      for (int64_t i = 0; i < count_; ++i) {
        if (row[i] != last) {
          last = row[i];
          log = last > 0 ? std::log(last) : -std::numeric_limits<T>::infinity();
        }
        row[i] = log;
      }
    }
  }

 public:
  // [query, width] -> [width, query]
  void turn(const T* rows, T* turned) const {
    for (int64_t d0 = 0; d0 < stride_; d0 += 16)
      for (int64_t i = 0; i < kTile; ++i)
        for (int64_t d = d0; d < std::min(d0 + 16, stride_); ++d) turned[d * kTile + i] = rows[i * stride_ + d];
  }

 private:
  const Problem& p_;
  const int64_t stride_, nodes_;
  const T* means_;
  const View<E>*key_view_ = nullptr, *value_view_ = nullptr;
  const Nodes* tree_ = nullptr;
  int64_t task_ = 0, count_ = 0;
  int vectors_ = 0;
  size_t summaries_ = 0, fixed_ = 0, window_ = 0;  // first summary, first global token, first window key
  std::vector<T> keys_, values_, weights_, counts_, query_, turned_;
  std::vector<Column> columns_;
  std::vector<Span> spans_;
  std::vector<int64_t> far_sizes_;
};

// ------------------------------------------------------------------------------------------------- the whole attention

template <class E>
struct Inputs {
  View<E> q, k, v;
};

template <class T, class E>
void attend(const Problem& p, const Inputs<E>& in, const int32_t* order, const int32_t* leaf_of, const int32_t* near,
            const int32_t* far, const T* means, const View<E>& out, T* lse) {
  const int64_t stride = padded<T>(p.width);
#pragma omp parallel num_threads(threads_for(p, p.sequences * p.heads * p.chunks))
  {
    Tile<T, E> tile(p, means);
    std::vector<T> mixed(kTile * stride);
    T factors[kTile];
#pragma omp for schedule(dynamic, 4)
    for (int64_t place = 0; place < p.sequences * p.heads * p.chunks; ++place) {
      const int64_t task = place / p.chunks, start = place % p.chunks * p.chunk, s = task / p.heads, h = task % p.heads;
      const Nodes tree(p, task, order, leaf_of);
      const int64_t end = std::min(start + p.chunk, p.length), real = std::min(end, tree.length);
      for (int64_t i = std::max(start, real); i < end; ++i) std::memset(out.row(s, h, i), 0, p.width * sizeof(E));
      if (start >= real) continue;
      tile.open_chunk(in.k, in.v, task, tree, near + place * p.near, far + place * p.far);
      for (int64_t first = start; first < real; first += kTile) {
        const int64_t count = std::min<int64_t>(kTile, real - first);
        tile.open_tile(in.q, first, count, start);
        tile.score_all();
        tile.normalise(lse + task * p.length + first, factors);
        std::fill(mixed.begin(), mixed.end(), T(0));
        tile.mix_queries(tile.weights(), tile.values(), mixed.data());
        for (int64_t i = 0; i < count; ++i)
          for (int64_t d = 0; d < p.width; ++d) narrow(mixed[i * stride + d] * factors[i], out.row(s, h, first + i)[d]);
      }
    }
  }
}

// Gradients of one sequence and head, summed in T.
template <class T>
struct Sums {
  std::vector<T> keys, values, nodes;  // [n, stride], [n, stride], [node, key | value, stride]
};

// Hands the gradients of the means down to the keys that they were taken over.
template <class T>
void spread(const Problem& p, const Nodes& tree, int64_t stride, Sums<T>& sums) {
  const int64_t row = 2 * stride;
  for (int64_t height = p.heights - 1; height >= 0; --height)
    for (int64_t node = 0; node < tree.count(height); ++node) {
      T* own = &sums.nodes[(tree.offset(height) + node) * row];
      const T size = T(tree.size(node, height));
      const bool has_parent = height + 1 < p.heights && node / 2 < tree.count(height + 1);
      const T* above = has_parent ? &sums.nodes[(tree.offset(height + 1) + node / 2) * row] : nullptr;
      for (int64_t d = 0; d < row; ++d) own[d] = own[d] / size + (above ? above[d] : T(0));
      if (height) continue;
      for (int64_t r = tree.first_rank(node); r < tree.first_rank(node + 1); ++r) {
        add_scaled(&sums.keys[tree.position(r) * stride], own, T(1), stride);
        add_scaled(&sums.values[tree.position(r) * stride], own + stride, T(1), stride);
      }
    }
}

template <class T, class E>
class Backward {
 public:
  Backward(const Problem& problem, const T* means)
      : p_(problem),
        stride_(padded<T>(problem.width)),
        tile_(problem, means),
        slope_(kTile * stride_),
        turned_(kTile * stride_),
        mixed_(kTile * stride_) {
    sums_.keys.resize(problem.length * stride_);
    sums_.values.resize(problem.length * stride_);
    sums_.nodes.resize(total_nodes(problem) * 2 * stride_);
  }

  void run(const Inputs<E>& in, int64_t task, const Nodes& tree, const int32_t* near, const int32_t* far,
           const View<E>& grad, const T* lse, const Inputs<E>& grads) {
    const int64_t s = task / p_.heads, h = task % p_.heads;
    for (auto* sum : {&sums_.keys, &sums_.values, &sums_.nodes}) std::fill(sum->begin(), sum->end(), T(0));
    for (int64_t c = 0; c < p_.chunks && c * p_.chunk < tree.length; ++c) {
      const int64_t start = c * p_.chunk, end = std::min(start + p_.chunk, tree.length);
      tile_.open_chunk(in.k, in.v, task, tree, near + c * p_.near, far + c * p_.far);
      for (int64_t first = start; first < end; first += kTile) {
        const int64_t count = std::min<int64_t>(kTile, end - first);
        tile_.open_tile(in.q, first, count, start);
        run_tile(s, h, first, count, grad, lse + first, grads.q);
      }
    }
    spread(p_, tree, stride_, sums_);
    for (int64_t i = 0; i < p_.length; ++i)
      for (int64_t d = 0; d < p_.width; ++d) {
        narrow(sums_.keys[i * stride_ + d], grads.k.row(s, h, i)[d]);
        narrow(sums_.values[i * stride_ + d], grads.v.row(s, h, i)[d]);
        if (i >= tree.length) narrow(T(0), grads.q.row(s, h, i)[d]);
      }
  }

 private:
  void run_tile(int64_t s, int64_t h, int64_t first, int64_t count, const View<E>& grad, const T* lse,
                const View<E>& to) {
    std::fill(slope_.begin() + count * stride_, slope_.end(), T(0));
    for (int64_t i = 0; i < count; ++i) read_row(grad.row(s, h, first + i), p_.width, stride_, &slope_[i * stride_]);
    tile_.turn(slope_.data(), turned_.data());
    tile_.score_all();
    tile_.normalise_with(lse);
    find_slopes();
    std::fill(mixed_.begin(), mixed_.end(), T(0));
    tile_.mix_queries(slopes_.data(), tile_.keys(), mixed_.data());
    const T scale = T(1) / std::sqrt(T(p_.width));
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = 0; d < p_.width; ++d) narrow(mixed_[i * stride_ + d] * scale, to.row(s, h, first + i)[d]);
    find_targets();
    tile_.mix_columns(slopes_.data(), tile_.query(), key_targets_.data());
    tile_.mix_columns(tile_.weights(), slope_.data(), value_targets_.data());
  }

  // Slopes of the logits: weight x (slope of the weight - their mean under the weights).
  void find_slopes() {
    const size_t columns = tile_.columns().size();
    slopes_.resize((columns + kRows) * kTile);
    T* slopes = slopes_.data();
    score(tile_.values(), stride_, p_.width, turned_.data(), slopes, int64_t(tile_.fixed()), 0, tile_.vectors());
    tile_.score_band(tile_.values(), turned_.data(), slopes, T(0));
    for (int v = 0; v < tile_.vectors(); ++v) {
      const int64_t at = v * Lanes<T>::count;
      Vec<T> mean{};
      for (size_t x = 0; x < columns; ++x) mean += load(tile_.weights() + x * kTile + at) * load(slopes + x * kTile + at);
      for (size_t x = 0; x < columns; ++x) {
        T* slope = slopes + x * kTile + at;
        store<T>(slope, load(tile_.weights() + x * kTile + at) * (load(slope) - mean));
      }
    }
  }

  void find_targets() {
    key_targets_.clear();
    value_targets_.clear();
    for (const Column& column : tile_.columns()) {
      T* node = column.source < 0 ? &sums_.nodes[(-1 - column.source) * 2 * stride_] : nullptr;
      key_targets_.push_back(node ? node : &sums_.keys[column.source * stride_]);
      value_targets_.push_back(node ? node + stride_ : &sums_.values[column.source * stride_]);
    }
  }

  const Problem& p_;
  const int64_t stride_;
  Tile<T, E> tile_;
  Sums<T> sums_;
  std::vector<T> slope_, turned_, mixed_, slopes_;
  std::vector<T*> key_targets_, value_targets_;
};

template <class T, class E>
void attend_backward(const Problem& p, const Inputs<E>& in, const int32_t* order, const int32_t* leaf_of,
                     const int32_t* near, const int32_t* far, const T* means, const View<E>& grad, const T* lse,
                     const Inputs<E>& grads) {
#pragma omp parallel num_threads(threads_for(p, p.sequences * p.heads))
  {
    Backward<T, E> backward(p, means);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < p.sequences * p.heads; ++task) {
      const Nodes tree(p, task, order, leaf_of);
      backward.run(in, task, tree, near + task * p.chunks * p.near, far + task * p.chunks * p.far, grad,
                   lse + task * p.length, grads);
    }
  }
}

}  // namespace

// ------------------------------------------------------------------------------------------------------- the C interface

#define SORTYARD_FACE(NAME, T, E)                                                                                       \
  extern "C" void sortyard_tree_##NAME(const Problem* p, const void* q, const int64_t* qs, const void* k,               \
                                       const int64_t* ks, const T* directions, int32_t* order, int32_t* leaf_of) {      \
    build_tree<T, E>(*p, view<E>(q, qs), view<E>(k, ks), directions, order, leaf_of);                                   \
  }                                                                                                                     \
  extern "C" void sortyard_means_##NAME(const Problem* p, const void* k, const int64_t* ks, const void* v,              \
                                        const int64_t* vs, const int32_t* order, const int32_t* leaf_of, T* means,      \
                                        T* spreads) {                                                                   \
    View<E> values{};                                                                                                   \
    if (v) values = view<E>(v, vs);                                                                                     \
    mean_nodes<T, E>(*p, view<E>(k, ks), v ? &values : nullptr, order, leaf_of, means, spreads);                        \
  }                                                                                                                     \
  extern "C" void sortyard_descend_##NAME(const Problem* p, const void* q, const int64_t* qs, const T* means,           \
                                          const T* spreads, int64_t parts, int32_t* near, int32_t* far) {               \
    descend<T, E>(*p, view<E>(q, qs), means, spreads, parts* padded<T>(p->width), near, far);                           \
  }                                                                                                                     \
  extern "C" void sortyard_attend_##NAME(const Problem* p, const void* q, const int64_t* qs, const void* k,             \
                                         const int64_t* ks, const void* v, const int64_t* vs, const int32_t* order,     \
                                         const int32_t* leaf_of, const int32_t* near, const int32_t* far,               \
                                         const T* means, void* out, const int64_t* os, T* lse) {                        \
    attend<T, E>(*p, {view<E>(q, qs), view<E>(k, ks), view<E>(v, vs)}, order, leaf_of, near, far, means,                \
                 view<E>(out, os), lse);                                                                                \
  }                                                                                                                     \
  extern "C" void sortyard_attend_backward_##NAME(                                                                      \
      const Problem* p, const void* q, const int64_t* qs, const void* k, const int64_t* ks, const void* v,              \
      const int64_t* vs, const int32_t* order, const int32_t* leaf_of, const int32_t* near, const int32_t* far,         \
      const T* means, const void* grad, const int64_t* gs, const T* lse, void* dq,                                      \
      const int64_t* dqs, void* dk, const int64_t* dks, void* dv, const int64_t* dvs) {                                 \
    attend_backward<T, E>(*p, {view<E>(q, qs), view<E>(k, ks), view<E>(v, vs)}, order, leaf_of, near, far, means,       \
                          view<E>(grad, gs), lse,                                                                       \
                          {view<E>(dq, dqs), view<E>(dk, dks), view<E>(dv, dvs)});                                      \
  }

SORTYARD_FACE(float32, float, float)
SORTYARD_FACE(float64, double, double)
SORTYARD_FACE(bfloat16, float, Bfloat16)
