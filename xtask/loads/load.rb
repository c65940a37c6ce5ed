# Hashes, regular expressions, sorting by a block, recursion, exceptions, fibers.
require 'json'
def fib(n) = n < 2 ? n : fib(n - 1) + fib(n - 2)
loop do
  rows = Array.new(2000) { |i| { 'id' => i, 'name' => rand.to_s } }
  text = JSON.generate(rows)
  raise 'unequal' unless JSON.parse(text) == rows
  text.scan(/\d+/).tally.sort_by { |word, count| [-count, word] }
  rows.sort { |a, b| a['name'] <=> b['name'] }
  text.gsub(/(\d)(\d+)/) { $2 + $1 }
  fib(20)
  1000.times { begin; raise 'on purpose'; rescue StandardError; end }
  numbers = Fiber.new { 10_000.times { |i| Fiber.yield i } }
  5000.times { numbers.resume }
end
