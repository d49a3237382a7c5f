// Draws tokens as the host's sampler does, or scores given ones, one thread block for each row of
// logits. Top-k, top-p and min-p each keep a prefix of the tokens in falling order: the shortest of the
// three is a mass, and the draw a place inside it.

#define TOP_LOGPROBS 20
#define NO_LOGPROBS 0xffffffffu

// What is wanted of a row of logits.
#define COPIED 0
#define DRAWN 1
#define SCORED 2

struct Draw {
    u64 seed;
    float temperature;
    float top_p;
    float min_p;
    u32 top_k;
    u32 output_index;
    u32 logprobs; // how many of the likeliest; NO_LOGPROBS: none at all
    u32 wanted;
    u32 first_edit, edits;
    u32 mask; // 0: any token may be drawn; else 1 + the place of the row's mask
    u32 scored; // the token whose log probability is wanted
    u32 unused;
};

// A logit's change before the draw.
struct Edit {
    u32 token;
    float divisor; // divides a positive logit, multiplies another; comes before `add`
    float add;
    float saved; // the logit as the model gave it
};

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
    u64 kept = sorted ? fill_coarse(logits) : total_mass(logits, IMPOSSIBLE);
    if (request.top_k > 0 && request.top_k < logits.count) {
        const Place place = select(logits, COUNT, request.top_k - 1);
        if (place.key != 0) {
            kept = place.mass + (request.top_k - place.count) * mass_of(logits, logit_of(place.key));
        }
    }
    if (request.top_p < 1.0f) {
        const u64 wanted = max((u64)((double)request.top_p * (double)kept), 1ull);
        const Place place = select(logits, MASS, wanted - 1);
        const u64 each = max(mass_of(logits, logit_of(place.key)), 1ull);
        kept = min(kept, place.mass + (wanted - place.mass + each - 1) / each * each);
    }
    float least = IMPOSSIBLE;
    if (request.min_p > 0.0f) {
        least = logits.max + request.temperature * logf(request.min_p);
        kept = min(kept, total_mass(logits, least));
    }
    const u64 target = min((u64)(uniform(request.seed, request.output_index) * (double)kept), kept - 1);
    if (!sorted) {
        return walk(logits, MASS, least, logits.max, target);
    }
    const Place place = select(logits, MASS, target);
    const u64 each = max(mass_of(logits, logit_of(place.key)), 1ull);
    const float there = logit_of(place.key);
    return walk(logits, COUNT, there, there, (target - place.mass) / each);
}

// What the logits alone give a token, and the `wanted` likeliest: row `row` of the results.
__device__ __forceinline__ void write_logprobs(
    const Logits& logits, u32 token, u32 wanted, u32 row, float* logprobs, u32* top_ids, float* top_logprobs) {
    double sum = 0.0;
    for_each(logits, [&](u32, float logit) { sum += expf(logit - logits.max); });
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    }
    if (threadIdx.x % 32 == 0) {
        warp_results[threadIdx.x / 32] = __double_as_longlong(sum);
    }
    __syncthreads();
    sum = 0.0;
    for (int w = 0; w < WARPS; ++w) {
        sum += __longlong_as_double(warp_results[w]);
    }
    __syncthreads();
    const double norm = (double)logits.max + log(sum);
    if (threadIdx.x == 0) {
        logprobs[row] = (float)((double)logits.values[token] - norm);
    }
    u64 previous = ~0ull;
    for (u32 rank = 0; rank < min(wanted, TOP_LOGPROBS); ++rank) {
        // Only what comes behind the one before.
        const float limit = rank == 0 ? -IMPOSSIBLE : logit_of(previous >> 32);
        const u32 limit_id = rank == 0 ? 0 : ~(u32)previous + 1;
        float most = IMPOSSIBLE;
        u32 of = 0xffffffffu;
        for_each(logits, [&](u32 id, float logit) {
            const bool behind = logit < limit || (logit == limit && id >= limit_id);
            const bool larger = behind && (logit > most || (of == 0xffffffffu && logit == most));
            most = larger ? logit : most;
            of = larger ? id : of;
        });
        previous = block_max(of == 0xffffffffu ? 0 : (u64)key_of(most) << 32 | ~of);
        if (threadIdx.x == 0) {
            const u64 at = (u64)row * TOP_LOGPROBS + rank;
            top_ids[at] = ~(u32)previous;
            top_logprobs[at] = (float)((double)logit_of(previous >> 32) - norm);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) sample(
    const Step* step, const Draw* draws, Edit* all_edits, const u32* masks, float* all_logits, u32 vocabulary,
    u32 first, u32 count, u32* tokens, float* logprobs, u32* top_ids, float* top_logprobs) {
    let_next_start();
    wait_for_previous();
    for (u32 i = blockIdx.x; i < count && first + i < step->logit_rows; i += gridDim.x) {
        const Draw request = draws[first + i];
        if (request.wanted == COPIED) {
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
        const u32* allowed = request.mask == 0 ? nullptr : masks + (u64)(request.mask - 1) * ((vocabulary + 31) / 32);
        Logits logits = {
            own, allowed, vocabulary, 0.0f, request.temperature, (BINS - 1) / (WEIGHTLESS * request.temperature)};
        const u64 best = likeliest(logits);
        const bool none = best >> 32 == 0; // every logit is NaN
        logits.max = logit_of(best >> 32);
        u32 token = none ? 0 : ~(u32)best;
        if (request.wanted == SCORED) {
            token = request.scored;
        } else if (!none && request.temperature > 0.0f && request.top_k != 1) {
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
        logits.allowed = nullptr;
        if (request.edits > 0 || allowed != nullptr) {
            logits.max = logit_of(likeliest(logits) >> 32);
        }
        write_logprobs(logits, token, request.logprobs, first + i, logprobs, top_ids, top_logprobs);
    }
}
