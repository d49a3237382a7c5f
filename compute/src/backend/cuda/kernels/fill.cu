// Seeded values for models and adapters without files: uniform in -scale..scale.

extern "C" __global__ void __launch_bounds__(256) fill(u16* out, u64 count, u64 seed, float scale) {
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
        // SplitMix64 (Steele, Lea, Flood, 2014).
        u64 v = (i + seed) * 0x9E3779B97F4A7C15ull;
        v = (v ^ v >> 30) * 0xBF58476D1CE4E5B9ull;
        v = (v ^ v >> 27) * 0x94D049BB133111EBull;
        v ^= v >> 31;
        out[i] = to_bf16(((float)(v >> 40) * (2.0f / 16777216.0f) - 1.0f) * scale);
    }
}
