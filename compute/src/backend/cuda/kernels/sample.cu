// Draws tokens as the host's sampler does, one thread block for each row of logits.
//
// A weight is exp((logit - max) / temperature) in fixed point, so that sums do not depend on the
// order in which threads add. Top-k, top-p and min-p each keep a prefix of the tokens in falling
// order: the shortest of the three is a mass, and the draw a place inside it.

#define THREADS 1024
#define WARPS (THREADS / 32)
#define UNIT (1ull << 40)
#define TOP_LOGPROBS 20
#define NO_LOGPROBS 0xffffffffu

struct Draw {
    u64 seed;
    float temperature;
    float top_p;
    float min_p;
    u32 top_k;
    u32 output_index;
    u32 logprobs; // how many of the likeliest; NO_LOGPROBS: none at all
    u32 wanted;   // 0: this row's logits are only copied
    u32 first_edit, edits;
    u32 unused;
};

// A logit's change before the draw.
struct Edit {
    u32 token;
    float divisor; // divides a positive logit, multiplies another; comes before `add`
    float add;
    float saved; // the logit as the model gave it
};

struct Logits {
    const float* values;
    u32 count;
    float max;
    float temperature;
};

enum Measure { COUNT, MASS };

__shared__ u64 warp_sums[8][WARPS];
__shared__ u64 broadcast[2];

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

__device__ __forceinline__ u64 mass_of(const Logits& logits, float logit) {
    if (logit == logits.max) {
        return UNIT;
    }
    return (u64)(expf((logit - logits.max) / logits.temperature) * (float)UNIT);
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

// Sums each of N values over the block.
template <int N> __device__ void block_sums(u64 (&values)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const u64 sum = warp_sum(values[i]);
        if (threadIdx.x % 32 == 0) {
            warp_sums[i][threadIdx.x / 32] = sum;
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; ++i) {
        values[i] = warp_sum(warp_sums[i][threadIdx.x % 32]);
    }
    __syncthreads();
}

__device__ __noinline__ u64 block_max(u64 v) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        v = max(v, __shfl_xor_sync(0xffffffffu, v, offset));
    }
    if (threadIdx.x % 32 == 0) {
        warp_sums[0][threadIdx.x / 32] = v;
    }
    __syncthreads();
    v = warp_sums[0][threadIdx.x % 32];
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        v = max(v, __shfl_xor_sync(0xffffffffu, v, offset));
    }
    __syncthreads();
    return v;
}

// Sum of the measure over logits of at least `least`.
__device__ __noinline__ u64 total(const Logits& logits, Measure measure, u32 least) {
    u64 sum[1] = {0};
#pragma unroll 4
    for (u32 i = threadIdx.x; i < logits.count; i += THREADS) {
        const u32 key = key_of(logits.values[i]);
        if (key != 0 && key >= least) {
            sum[0] += measure_of(logits, logits.values[i], measure);
        }
    }
    block_sums<1>(sum);
    return sum[0];
}

// Largest key such that the logits from it up measure more than `target`. Three bits of the key at
// a time, from the highest.
__device__ __noinline__ u32 select(const Logits& logits, Measure measure, u64 target) {
    u32 found = 0;
    for (int bits = 32; bits > 0; bits -= 3) {
        const int shift = max(bits - 3, 0);
        const u32 choices = bits >= 3 ? 8 : 1u << bits;
        u64 sums[7] = {};
#pragma unroll 4
        for (u32 i = threadIdx.x; i < logits.count; i += THREADS) {
            const u32 key = key_of(logits.values[i]);
            if (key == 0 || key < found) {
                continue;
            }
            const u64 v = measure_of(logits, logits.values[i], measure);
            const u32 above = (key - found) >> shift;
#pragma unroll
            for (u32 c = 1; c < 8; ++c) {
                sums[c - 1] += above >= c ? v : 0;
            }
        }
        block_sums<7>(sums);
        u32 choice = 0;
#pragma unroll
        for (u32 c = 1; c < 8; ++c) {
            choice = c < choices && sums[c - 1] > target ? c : choice;
        }
        found += choice << shift;
    }
    return found;
}

// The first id, in rising order, at which the measure of the ids up to it exceeds `target`. Ids
// count whose key lies in least..=most.
__device__ __noinline__ u32 walk(const Logits& logits, Measure measure, u32 least, u32 most, u64 target) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 share = (logits.count + WARPS - 1) / WARPS;
    const u32 start = warp * share, end = min(start + share, logits.count);
    u64 sum = 0;
#pragma unroll 4
    for (u32 i = start + lane; i < end; i += 32) {
        const u32 key = key_of(logits.values[i]);
        if (key != 0 && key >= least && key <= most) {
            sum += measure_of(logits, logits.values[i], measure);
        }
    }
    sum = warp_sum(sum);
    if (lane == 0) {
        warp_sums[0][warp] = sum;
    }
    if (threadIdx.x == 0) {
        broadcast[0] = 0;
    }
    __syncthreads();
    u64 before = 0;
    for (u32 w = 0; w < warp; ++w) {
        before += warp_sums[0][w];
    }
    if (before <= target && target < before + sum) {
        bool searching = true;
        for (u32 i = start; searching && i < end; i += 32) {
            const float logit = i + lane < end ? logits.values[i + lane] : 0.0f;
            const u32 key = i + lane < end ? key_of(logit) : 0;
            const bool counts = key != 0 && key >= least && key <= most;
            u64 prefix = counts ? measure_of(logits, logit, measure) : 0;
#pragma unroll
            for (int offset = 1; offset < 32; offset *= 2) {
                const u64 other = __shfl_up_sync(0xffffffffu, prefix, offset);
                prefix += lane >= offset ? other : 0;
            }
            const u32 reached = __ballot_sync(0xffffffffu, before + prefix > target);
            if (reached != 0) {
                searching = false;
                if (lane == 0) {
                    broadcast[0] = i + __ffs(reached) - 1;
                }
            }
            before += __shfl_sync(0xffffffffu, prefix, 31);
        }
    }
    __syncthreads();
    const u32 id = (u32)broadcast[0];
    __syncthreads();
    return id;
}

// Philox4x32-10 (Salmon et al., 2011): a number in 0..1 that depends on its arguments only.
__device__ double uniform(u64 seed, u32 output_index) {
    u32 counter[4] = {output_index, 0, 0, 0};
    u32 key[2] = {(u32)seed, (u32)(seed >> 32)};
    for (int round = 0; round < 10; ++round) {
        const u64 first = (u64)counter[0] * 0xD2511F53u, second = (u64)counter[2] * 0xCD9E8D57u;
        const u32 next[4] = {
            (u32)(second >> 32) ^ counter[1] ^ key[0], (u32)second,
            (u32)(first >> 32) ^ counter[3] ^ key[1], (u32)first};
        for (int i = 0; i < 4; ++i) {
            counter[i] = next[i];
        }
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    const u64 bits = (u64)counter[1] << 32 | counter[0];
    return (double)(bits >> 11) / 9007199254740992.0;
}

__device__ u32 draw(const Logits& logits, const Draw& request) {
    const bool sorted = request.top_k > 0 || request.top_p < 1.0f;
    u64 kept = total(logits, MASS, 0);
    if (request.top_k > 0 && request.top_k < logits.count) {
        const u32 key = select(logits, COUNT, request.top_k - 1);
        if (key != 0) {
            const u64 more = total(logits, COUNT, key + 1);
            kept = total(logits, MASS, key + 1) + (request.top_k - more) * mass_of(logits, logit_of(key));
        }
    }
    if (request.top_p < 1.0f) {
        const u64 wanted = max((u64)((double)request.top_p * (double)kept), 1ull);
        const u32 key = select(logits, MASS, wanted - 1);
        const u64 more = total(logits, MASS, key + 1), each = max(mass_of(logits, logit_of(key)), 1ull);
        kept = min(kept, more + (wanted - more + each - 1) / each * each);
    }
    u32 least = 0;
    if (request.min_p > 0.0f) {
        least = key_of(logits.max + request.temperature * logf(request.min_p));
        kept = min(kept, total(logits, MASS, least));
    }
    const u64 target = min((u64)(uniform(request.seed, request.output_index) * (double)kept), kept - 1);
    if (!sorted) {
        return walk(logits, MASS, least, 0xffffffffu, target);
    }
    const u32 key = select(logits, MASS, target);
    const u64 each = max(mass_of(logits, logit_of(key)), 1ull);
    return walk(logits, COUNT, key, key, (target - total(logits, MASS, key + 1)) / each);
}

extern "C" __global__ void __launch_bounds__(THREADS) sample(
    const Step* step, const Draw* draws, Edit* all_edits, float* all_logits, u32 vocabulary, u32 first, u32 count,
    u32* tokens, float* logprobs, u32* top_ids, float* top_logprobs) {
    wait_for_previous();
    let_next_start();
    for (u32 i = blockIdx.x; i < count && first + i < step->logit_rows; i += gridDim.x) {
        const Draw request = draws[first + i];
        if (!request.wanted) {
            continue;
        }
        Edit* edits = all_edits + request.first_edit;
        float* own = all_logits + (u64)i * vocabulary;
        for (u32 e = threadIdx.x; e < request.edits; e += THREADS) {
            float& logit = own[edits[e].token];
            edits[e].saved = logit;
            logit = (logit > 0.0f ? logit / edits[e].divisor : logit * edits[e].divisor) + edits[e].add;
        }
        __syncthreads();
        Logits logits = {all_logits + (u64)i * vocabulary, vocabulary, 0.0f, request.temperature};
        // Key, then the complement of the id: the largest is the likeliest, and of equals the first.
        u64 best = 0;
#pragma unroll 8
        for (u32 id = threadIdx.x; id < vocabulary; id += THREADS) {
            best = max(best, (u64)key_of(logits.values[id]) << 32 | ~id);
        }
        best = block_max(best);
        const bool none = best >> 32 == 0; // every logit is NaN
        logits.max = logit_of(best >> 32);
        u32 token = none ? 0 : ~(u32)best;
        if (!none && request.temperature > 0.0f && request.top_k != 1) {
            token = draw(logits, request);
        }
        if (threadIdx.x == 0) {
            tokens[first + i] = token;
        }
        // What is read from here on is what the model gave.
        __syncthreads();
        for (u32 e = threadIdx.x; e < request.edits; e += THREADS) {
            own[edits[e].token] = edits[e].saved;
        }
        __syncthreads();
        if (request.logprobs == NO_LOGPROBS) {
            continue;
        }
        if (request.edits > 0) {
            u64 most = 0;
            for (u32 id = threadIdx.x; id < vocabulary; id += THREADS) {
                most = max(most, (u64)key_of(logits.values[id]));
            }
            logits.max = logit_of((u32)block_max(most));
        }
        double sum = 0.0;
        for (u32 id = threadIdx.x; id < vocabulary; id += THREADS) {
            sum += expf(logits.values[id] - logits.max);
        }
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, offset);
        }
        if (threadIdx.x % 32 == 0) {
            warp_sums[0][threadIdx.x / 32] = __double_as_longlong(sum);
        }
        __syncthreads();
        sum = 0.0;
        for (int w = 0; w < WARPS; ++w) {
            sum += __longlong_as_double(warp_sums[0][w]);
        }
        __syncthreads();
        const double norm = (double)logits.max + log(sum);
        if (threadIdx.x == 0) {
            logprobs[first + i] = (float)((double)logits.values[token] - norm);
        }
        u64 previous = ~0ull;
        for (u32 rank = 0; rank < min(request.logprobs, TOP_LOGPROBS); ++rank) {
            u64 next = 0;
            for (u32 id = threadIdx.x; id < vocabulary; id += THREADS) {
                const u64 candidate = (u64)key_of(logits.values[id]) << 32 | ~id;
                next = candidate < previous ? max(next, candidate) : next;
            }
            previous = block_max(next);
            if (threadIdx.x == 0) {
                const u64 at = (u64)(first + i) * TOP_LOGPROBS + rank;
                top_ids[at] = ~(u32)previous;
                top_logprobs[at] = (float)((double)logit_of(previous >> 32) - norm);
            }
        }
    }
}
