//! Zig's release build, without frame pointers: an error union, a function pointer, and recursion.

const rounds = 3_000_000;

/// Functions of the same instructions would become one: each ends in a number of its own.
inline fn burn(comptime number: u64) void {
    const count = @as(*volatile u64, &opaque_count).*;
    var i: u64 = 0;
    while (i < count) : (i += 1) asm volatile ("");
    @as(*volatile u64, &last).* = number;
}

var last: u64 = 0;

var opaque_count: u64 = rounds;
var opaque_depth: u64 = 5;

const Failed = error{Failed};

noinline fn burnInPointer() void {
    burn(1);
}

noinline fn burnInFallible() Failed!void {
    burn(2);
    if (@as(*volatile u64, &opaque_count).* != rounds) return error.Failed;
}

noinline fn burnInRecursion() void {
    burn(3);
}

noinline fn callPointer(function: *const fn () void) void {
    @call(.never_tail, function, .{});
    asm volatile ("");
}

noinline fn callFallible() void {
    burnInFallible() catch unreachable;
    asm volatile ("");
}

noinline fn recurse(depth: u64) void {
    if (depth > 1) @call(.never_tail, recurse, .{depth - 1}) else @call(.never_tail, burnInRecursion, .{});
    asm volatile ("");
}

noinline fn oneRound(pointer: *const fn () void) void {
    callPointer(pointer);
    callFallible();
    recurse(@as(*volatile u64, &opaque_depth).*);
    asm volatile ("");
}

var pointer_to_call: *const fn () void = &burnInPointer;

pub fn main() void {
    while (true) oneRound(@as(*volatile *const fn () void, &pointer_to_call).*);
}
