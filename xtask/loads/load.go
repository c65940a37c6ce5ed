// JSON, maps, sorting, regular expressions, channels, panics and garbage, on some goroutines.
package main

import (
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"regexp"
	"sort"
	"strings"
)

type row struct {
	ID   int
	Name string
	Tags []string
}

func fib(n int) int {
	if n < 2 {
		return n
	}
	return fib(n-1) + fib(n-2)
}

func recovers() {
	defer func() { _ = recover() }()
	panic("on purpose")
}

func work(out chan<- string) {
	digits := regexp.MustCompile(`(\d)(\d+)`)
	for {
		rows := make([]row, 2000)
		for i := range rows {
			rows[i] = row{i, fmt.Sprint(rand.Int63()), []string{"x", "y"}}
		}
		text, _ := json.Marshal(rows)
		if err := json.Unmarshal(text, &rows); err != nil {
			panic(err)
		}
		sort.Slice(rows, func(a, b int) bool { return rows[a].Name < rows[b].Name })
		counts := map[string]int{}
		for _, word := range strings.Split(string(text), `"`) {
			counts[word]++
		}
		digits.ReplaceAllString(string(text), "$2$1")
		zip := gzip.NewWriter(io.Discard)
		_, _ = zip.Write(text)
		_ = zip.Close()
		fib(22)
		for i := 0; i < 1000; i++ {
			recovers()
		}
		out <- fmt.Sprintf("%x", sha256.Sum256(text))
	}
}

func main() {
	sums := make(chan string)
	for i := 0; i < 3; i++ {
		go work(sums)
	}
	for range sums {
	}
}
