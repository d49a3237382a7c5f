// hidden += y, with the adapters added first. For steps without adapters the norm does this itself.

#define GROUPS 2
#define WARPS 4

extern "C" __global__ void __launch_bounds__(WARPS * 32, 4) residual(
    const Step* step, const Tile* tiles, const u16* y, const u16* z, u32 z_stride, float* hidden,
    u32 width, u32 layer, u32 linear) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const u32 columns = width / (32 * GROUPS);
    const u32 items = step->tiles * columns;
    const Range range = warp_share(items);
    for (u32 item = range.start; item < range.end; ++item) {
        const Tile tile = tiles[item / columns];
        const u32 column = item % columns * (32 * GROUPS);
        const AdapterModule* module = module_of(tile, layer, linear);
        float acc[GROUPS][4][4];
        expand<GROUPS>(acc, tile, module, z, z_stride, column);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (g + 8 * half >= tile.rows) {
                continue;
            }
            const u64 r = tile.first_row + g + 8 * half;
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) {
                const u64 c = column + 32 * group + 8 * q;
                float add[8];
                adapted(add, *(const uint4*)(y + r * width + c), acc[group], half == 1, tile, module, c);
                float* h = hidden + r * width + c;
                float4 first = *(float4*)h, second = *(float4*)(h + 4);
                *(float4*)h = make_float4(first.x + add[0], first.y + add[1], first.z + add[2], first.w + add[3]);
                *(float4*)(h + 4) =
                    make_float4(second.x + add[4], second.y + add[5], second.z + add[6], second.w + add[7]);
            }
        }
    }
}
