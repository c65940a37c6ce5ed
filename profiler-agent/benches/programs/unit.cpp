// One unit of a large C++ program: much of the standard library, instantiated for types that no other unit has.
#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

namespace {

struct Key {
  std::string name;
  int number;
  bool operator<(const Key &other) const { return std::tie(name, number) < std::tie(other.name, other.number); }
  bool operator==(const Key &other) const { return name == other.name && number == other.number; }
};

struct Hash {
  size_t operator()(const Key &key) const { return std::hash<std::string>()(key.name) ^ key.number; }
};

struct Traits : std::regex_traits<char> {};

template <int N>
int work(int seed) {
  std::map<Key, std::vector<std::variant<int, Key, std::string>>> ordered;
  std::unordered_map<Key, std::shared_ptr<std::set<Key>>, Hash> hashed;
  std::vector<Key> keys;
  for (int i = 0; i < seed + N; i++) {
    Key key{std::to_string(i), i};
    keys.push_back(key);
    ordered[key].push_back(key);
    hashed[key] = std::make_shared<std::set<Key>>(keys.begin(), keys.end());
  }
  std::sort(keys.begin(), keys.end());
  std::stable_sort(keys.begin(), keys.end(), [](const Key &a, const Key &b) { return b < a; });
  std::basic_regex<char, Traits> pattern("(a|b)*c+" + std::to_string(N));
  std::ostringstream out;
  for (auto &[key, values] : ordered)
    for (auto &value : values) std::visit([&](auto &) { out << key.name; }, value);
  std::function<int(Key)> size = [&](Key key) { return int(hashed[key]->size() + out.str().size()); };
  return std::regex_match(out.str(), pattern) + size(keys.front());
}

}  // namespace

extern "C" int unit_main(int seed) { return work<1>(seed) + work<2>(seed) + work<3>(seed) + work<4>(seed); }
