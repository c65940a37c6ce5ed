"""JSON, text, sorting, compression, deep recursion and a callback out of C."""
import ctypes, functools, hashlib, json, random, re, zlib

def recursive(n):
    return n if n < 2 else recursive(n - 1) + recursive(n - 2)

def compare(a, b):
    return (a > b) - (a < b)

@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
def order(a, b):
    return a[0] - b[0]

qsort = ctypes.CDLL(None).qsort
qsort.restype = None
while True:
    rows = [{"id": i, "name": str(random.random()), "tags": ["x"] * 5} for i in range(2000)]
    text = json.dumps(rows)
    assert json.loads(text) == rows
    re.sub(r"(\d)(\d+)", r"\2\1", text)
    sorted((row["name"] for row in rows), key=functools.cmp_to_key(compare))
    hashlib.sha256(zlib.compress(text.encode(), 9)).hexdigest()
    recursive(20)
    numbers = (ctypes.c_int * 2000)(*(random.randrange(10**6) for _ in range(2000)))
    qsort(numbers, 2000, 4, order)
