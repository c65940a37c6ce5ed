// Templates enough to keep a compiler busy for seconds.
#include <algorithm>
#include <functional>
#include <iostream>
#include <map>
#include <random>
#include <regex>
#include <sstream>
#include <string>
#include <thread>
#include <unordered_map>
#include <variant>
#include <vector>

int main(int argc, char **argv) {
  std::map<std::string, std::vector<std::variant<int, double, std::string>>> rows;
  std::unordered_map<std::string, int> counts;
  std::mt19937_64 random(argc);
  std::regex words("([a-z]+)-([0-9]+)");
  for (int i = 0; i < 100; i++) {
    std::ostringstream name;
    name << "row-" << random() % 50;
    std::smatch match;
    std::string text = name.str();
    if (std::regex_match(text, match, words)) counts[match[2]]++;
    rows[text].emplace_back(i);
    rows[text].emplace_back(std::to_string(i));
  }
  std::vector<std::pair<std::string, int>> order(counts.begin(), counts.end());
  std::stable_sort(order.begin(), order.end(), [](auto &a, auto &b) { return a.second > b.second; });
  std::vector<std::thread> threads;
  for (auto &entry : rows)
    threads.emplace_back([&entry] { std::sort(entry.second.begin(), entry.second.end()); });
  for (auto &thread : threads) thread.join();
  std::cout << order.size() << argv[0] << std::endl;
}
