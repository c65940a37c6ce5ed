# Hashes, regular expressions, sorting by a sub, recursion.
use strict;
sub fib { my $n = shift; $n < 2 ? $n : fib($n - 1) + fib($n - 2) }
while (1) {
    my %count;
    my $text = join ' ', map { int(rand(5000)) } 1 .. 20000;
    $count{$1}++ while $text =~ /(\d+)/g;
    my @order = sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count;
    (my $copy = $text) =~ s/(\d)(\d*)/$2$1/g;
    my @packed = map { unpack 'H*', pack 'N', $_ } @order;
    fib(18);
    eval { die "on purpose\n" } for 1 .. 1000;
}
