import java.util.*;
import java.util.regex.Pattern;
import java.util.stream.*;

/** Streams, sorting, maps, regular expressions, recursion, exceptions, garbage: compiled at run time by the JVM. */
public class Load {
    static int fib(int n) {
        return n < 2 ? n : fib(n - 1) + fib(n - 2);
    }

    public static void main(String[] args) {
        Random random = new Random(1);
        Pattern digits = Pattern.compile("(\\d)(\\d+)");
        for (long round = 0; ; round++) {
            List<String> names = random.ints(20_000).mapToObj(Integer::toString).collect(Collectors.toList());
            Map<Integer, List<String>> byLength = names.stream().collect(Collectors.groupingBy(String::length));
            names.sort(Comparator.comparing(String::length).thenComparing(Comparator.reverseOrder()));
            long sum = names.parallelStream().mapToLong(Long::parseLong).sum();
            String text = String.join(" ", names.subList(0, 5000));
            int replaced = digits.matcher(text).replaceAll("$2$1").length();
            for (int i = 0; i < 1000; i++) {
                try {
                    throw new IllegalStateException("on purpose");
                } catch (IllegalStateException expected) {
                    sum++;
                }
            }
            if (sum + replaced + byLength.size() + fib(25) == 42) System.out.println(round);
        }
    }
}
