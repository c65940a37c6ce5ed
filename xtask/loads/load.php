<?php // Arrays, JSON, regular expressions, sorting by a closure, recursion.
function fib($n) { return $n < 2 ? $n : fib($n - 1) + fib($n - 2); }
while (true) {
    $rows = [];
    for ($i = 0; $i < 2000; $i++) $rows[] = ['id' => $i, 'name' => (string) mt_rand()];
    $text = json_encode($rows);
    if (json_decode($text, true) != $rows) exit(1);
    usort($rows, fn($a, $b) => strcmp($a['name'], $b['name']));
    preg_replace_callback('/(\d)(\d+)/', fn($m) => $m[2] . $m[1], $text);
    md5(gzcompress($text, 9));
    fib(20);
}
