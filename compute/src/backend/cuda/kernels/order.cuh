// Places in the falling order of a row of logits, and the mass of what stands above them; the thread
// block works on one row.
//
// A weight is exp((logit - max) / temperature) in fixed point, so that sums do not depend on the
// order in which threads add. Nothing is sorted: a place is found by counting tokens into bins,
// coarse ones for all, then finer ones inside a bin.

#define THREADS 1024
#define WARPS (THREADS / 32)
#define UNIT (1ull << 40)
#define BINS THREADS
#define BIN_BITS 10
// A token this many temperatures below the likeliest has no weight: 2^40 e^-28 < 1.
#define WEIGHTLESS 28.0f
#define IMPOSSIBLE __int_as_float(0xff800000)

struct Logits {
    const float* values;
    const u32* allowed; // a bit for each token; null: all
    u32 count;
    float max;
    float temperature;
    float bins_per_logit;
};

enum Measure { COUNT, MASS };

// Tokens by their logits, the largest first.
struct Bins {
    u32 counts[BINS];
    u32 low[BINS], high[BINS]; // halves of the mass
};

__shared__ Bins coarse, fine;
__shared__ u64 warp_results[WARPS];
__shared__ u64 broadcast[3];

// Falling order of logits as rising order of integers; 0 for NaN.
__device__ __forceinline__ u32 key_of(float logit) {
    if (isnan(logit)) {
        return 0;
    }
    const u32 bits = __float_as_uint(logit + 0.0f); // -0 becomes 0
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float logit_of(u32 key) {
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ float logit_at(const Logits& logits, u32 id) {
    const bool may_be_drawn = logits.allowed == nullptr || logits.allowed[id / 32] >> id % 32 & 1;
    return may_be_drawn ? logits.values[id] : IMPOSSIBLE;
}

// Calls `visit(id, logit)` for this thread's share of the tokens, in rising order. NaN among them.
template <typename F> __device__ __forceinline__ void for_each(const Logits& logits, F visit) {
    if (logits.count % 4 != 0) {
#pragma unroll 4
        for (u32 id = threadIdx.x; id < logits.count; id += THREADS) {
            visit(id, logit_at(logits, id));
        }
        return;
    }
    // Every row of logits starts at a multiple of 16 bytes.
#pragma unroll 2
    for (u32 i = threadIdx.x; i < logits.count / 4; i += THREADS) {
        float4 four = ((const float4*)logits.values)[i];
        if (logits.allowed != nullptr) {
            const u32 allowed = logits.allowed[i / 8] >> i % 8 * 4;
            four.x = allowed & 1 ? four.x : IMPOSSIBLE;
            four.y = allowed & 2 ? four.y : IMPOSSIBLE;
            four.z = allowed & 4 ? four.z : IMPOSSIBLE;
            four.w = allowed & 8 ? four.w : IMPOSSIBLE;
        }
        visit(4 * i, four.x);
        visit(4 * i + 1, four.y);
        visit(4 * i + 2, four.z);
        visit(4 * i + 3, four.w);
    }
}

__device__ __forceinline__ u64 mass_of(const Logits& logits, float logit) {
    if (logit == logits.max) {
        return UNIT;
    }
    return (u64)(expf((logit - logits.max) / logits.temperature) * (float)UNIT);
}

// Bins of equal width, the last one for whatever has no weight. Falls, or stays, when a logit rises.
__device__ __forceinline__ u32 coarse_bin(const Logits& logits, float logit) {
    if (logit == logits.max) {
        return 0;
    }
    const float bin = (logits.max - logit) * logits.bins_per_logit;
    return bin < BINS - 1 ? (u32)bin : BINS - 1;
}

// False of NaN.
__device__ __forceinline__ bool has_weight(const Logits& logits, float logit) {
    return logit == logits.max || (logits.max - logit) * logits.bins_per_logit < BINS - 1;
}

__device__ __forceinline__ u64 measure_of(const Logits& logits, float logit, Measure measure) {
    return measure == COUNT ? 1 : mass_of(logits, logit);
}

__device__ __forceinline__ u64 warp_sum(u64 v) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        v += __shfl_xor_sync(0xffffffffu, v, offset);
    }
    return v;
}

__device__ __forceinline__ u64 warp_max(u64 v) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        v = max(v, __shfl_xor_sync(0xffffffffu, v, offset));
    }
    return v;
}

// Over the block.
__device__ __noinline__ u64 block_sum(u64 v) {
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) {
        warp_results[threadIdx.x / 32] = v;
    }
    __syncthreads();
    v = warp_sum(warp_results[threadIdx.x % 32]);
    __syncthreads();
    return v;
}

// Over this thread and those before it.
__device__ __noinline__ u64 block_prefix(u64 v) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        const u64 other = __shfl_up_sync(0xffffffffu, v, offset);
        v += lane >= offset ? other : 0;
    }
    if (lane == 31) {
        warp_results[warp] = v;
    }
    __syncthreads();
    v += warp_sum(lane < warp ? warp_results[lane] : 0);
    __syncthreads();
    return v;
}

__device__ __noinline__ u64 block_max(u64 v) {
    v = warp_max(v);
    if (threadIdx.x % 32 == 0) {
        warp_results[threadIdx.x / 32] = v;
    }
    __syncthreads();
    v = warp_max(warp_results[threadIdx.x % 32]);
    __syncthreads();
    return v;
}

// The likeliest token: its key, then the complement of its id. 0 when every logit is NaN.
__device__ __noinline__ u64 likeliest(const Logits& logits) {
    float most = IMPOSSIBLE;
    u32 of = 0xffffffffu;
    for_each(logits, [&](u32 id, float logit) {
        // The first of equals; IMPOSSIBLE, too, may be the largest.
        const bool larger = logit > most || (of == 0xffffffffu && logit == most);
        most = larger ? logit : most;
        of = larger ? id : of;
    });
    return block_max(of == 0xffffffffu ? 0 : (u64)key_of(most) << 32 | ~of);
}

// Mass of the logits of at least `least`.
__device__ __noinline__ u64 total_mass(const Logits& logits, float least) {
    u64 sum = 0;
    for_each(logits, [&](u32, float logit) {
        if (logit >= least && has_weight(logits, logit)) {
            sum += mass_of(logits, logit);
        }
    });
    return block_sum(sum);
}

__device__ __forceinline__ void clear(Bins& bins) {
    bins.counts[threadIdx.x] = bins.low[threadIdx.x] = bins.high[threadIdx.x] = 0;
    __syncthreads();
}

__device__ __forceinline__ void add(Bins& bins, u32 bin, u64 mass) {
    atomicAdd(&bins.counts[bin], 1);
    const u32 low = (u32)mass, before = atomicAdd(&bins.low[bin], low);
    const u32 high = (u32)(mass >> 32) + (before + low < low);
    if (high > 0) {
        atomicAdd(&bins.high[bin], high);
    }
}

// The mass of this thread's bin.
__device__ __forceinline__ u64 own_mass(const Bins& bins) {
    return (u64)bins.high[threadIdx.x] << 32 | bins.low[threadIdx.x];
}

// Counts every token that has weight; gives the mass of all.
__device__ __noinline__ u64 fill_coarse(const Logits& logits) {
    clear(coarse);
    for_each(logits, [&](u32, float logit) {
        // Those of the last bin, most of all where nothing but a few tokens is allowed, would queue for it.
        if (has_weight(logits, logit)) {
            add(coarse, coarse_bin(logits, logit), mass_of(logits, logit));
        }
    });
    __syncthreads();
    return block_sum(own_mass(coarse));
}

// Smallest key whose logit lies in one of the bins up to this one. All lanes search together.
__device__ __forceinline__ u32 first_key(const Logits& logits, u32 bin) {
    u32 low = key_of(IMPOSSIBLE), high = key_of(logits.max);
    while (low < high) {
        const u32 step = (high - low) / 32 + 1;
        const u32 key = low + min((u64)(threadIdx.x % 32) * step, (u64)(high - low));
        const u32 reached = __ballot_sync(0xffffffffu, coarse_bin(logits, logit_of(key)) <= bin);
        if (reached == 0) {
            low = min((u64)low + 31ull * step + 1, (u64)high);
            continue;
        }
        const u32 lane = __ffs(reached) - 1;
        high = low + min((u64)lane * step, (u64)(high - low));
        low = lane == 0 ? high : low + (lane - 1) * step + 1;
    }
    return high;
}

// A place in the falling order of the logits.
struct Place {
    u32 key;         // of the logit that stands there; 0: one without weight, or none
    u64 count, mass; // of the logits above it
};

// Moves the place behind the bins that measure, all together, `target` or less. False: all do.
__device__ __noinline__ bool advance(Place& place, u32& bin, const Bins& bins, Measure measure, u64 target) {
    const u64 count = bins.counts[threadIdx.x], mass = own_mass(bins);
    if (threadIdx.x == 0) {
        broadcast[0] = BINS;
    }
    const u64 counts = place.count + block_prefix(count), masses = place.mass + block_prefix(mass);
    const u64 upto = measure == COUNT ? counts : masses;
    if (upto - (measure == COUNT ? count : mass) <= target && target < upto) {
        broadcast[0] = threadIdx.x;
        broadcast[1] = counts - count;
        broadcast[2] = masses - mass;
    }
    __syncthreads();
    bin = (u32)broadcast[0];
    if (bin < BINS) {
        place.count = broadcast[1];
        place.mass = broadcast[2];
    }
    __syncthreads();
    return bin < BINS;
}

// Where the logits from the largest down first measure more than `target`.
__device__ __noinline__ Place select(const Logits& logits, Measure measure, u64 target) {
    Place place = {0, 0, 0};
    u32 bin;
    if (!advance(place, bin, coarse, measure, target)) {
        return place;
    }
    u32 low = first_key(logits, bin), high = bin == 0 ? key_of(logits.max) : first_key(logits, bin - 1) - 1;
    while (low < high) {
        const int shift = max(32 - __clz(high - low) - BIN_BITS, 0);
        clear(fine);
        const float least = logit_of(low), most = logit_of(high);
        for_each(logits, [&](u32, float logit) {
            // Of the two zeros one may be a limit, but both have the key of the positive one.
            if (logit >= least && logit <= most && key_of(logit) <= high) {
                add(fine, (high - key_of(logit)) >> shift, mass_of(logits, logit));
            }
        });
        __syncthreads();
        advance(place, bin, fine, measure, target);
        high -= bin << shift;
        low = max(low, high - ((1u << shift) - 1));
    }
    place.key = low;
    return place;
}

// The first id, in rising order, at which the measure of the ids up to it exceeds `target`. Ids
// count whose logit lies in least..=most.
__device__ __noinline__ u32 walk(const Logits& logits, Measure measure, float least, float most, u64 target) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const auto measured = [&](u32 id) -> u64 {
        const float logit = logit_at(logits, id);
        const bool counts = logit >= least && logit <= most && has_weight(logits, logit);
        return counts ? measure_of(logits, logit, measure) : 0;
    };
    u32 start = 0, end = logits.count;
    u64 before = 0;
    // Each warp measures a share; the one that the place is in is shared out again.
    while (end - start > THREADS) {
        const u32 share = (end - start + WARPS - 1) / WARPS;
        const u32 own = min(start + warp * share, end), own_end = min(own + share, end);
        u64 sum = 0;
#pragma unroll 8
        for (u32 id = own + lane; id < own_end; id += 32) {
            sum += measured(id);
        }
        sum = warp_sum(sum);
        const u64 upto = before + block_prefix(lane == 0 ? sum : 0);
        if (lane == 0 && upto - sum <= target && target < upto) {
            broadcast[0] = own;
            broadcast[1] = own_end;
            broadcast[2] = upto - sum;
        }
        __syncthreads();
        start = (u32)broadcast[0];
        end = (u32)broadcast[1];
        before = broadcast[2];
        __syncthreads();
    }
    const u32 id = start + threadIdx.x;
    const u64 own = id < end ? measured(id) : 0, upto = before + block_prefix(own);
    if (upto - own <= target && target < upto) {
        broadcast[0] = id;
    }
    __syncthreads();
    const u32 found = (u32)broadcast[0];
    __syncthreads();
    return found;
}
