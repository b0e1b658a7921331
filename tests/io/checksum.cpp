// Checksums of files and pictures.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <set>
#include <span>
#include <vector>

#include "moecod/io/checksum.hpp"

namespace {

using namespace moecod;

constexpr uint64_t basis = 14695981039346656037ULL, prime = 1099511628211ULL;  // of 64-bit FNV-1a

TEST(Checksum, IsFnvOverWordsBegunWithTheLength) {
  EXPECT_EQ(io::checksum({}), basis);
  std::vector<std::byte> bytes(16);
  const uint64_t words[]{0x0123456789ABCDEFULL, 0xFEDCBA9876543210ULL};
  std::memcpy(bytes.data(), words, sizeof words);
  EXPECT_EQ(io::checksum(bytes), (((basis ^ 16) ^ words[0]) * prime ^ words[1]) * prime);
  const std::byte one[]{std::byte{7}};
  EXPECT_EQ(io::checksum(one), ((basis ^ 1) ^ 7) * prime) << "the last word is filled up with zeros";
}

TEST(Checksum, ChangesWithEveryBitAndWithTheNumberOfZeros) {
  std::vector<std::byte> bytes(21, std::byte{0x5A});
  const uint64_t whole = io::checksum(bytes);
  for (std::size_t i = 0; i < 8 * bytes.size(); ++i) {
    bytes[i / 8] ^= std::byte(1 << i % 8);
    EXPECT_NE(io::checksum(bytes), whole) << i;
    bytes[i / 8] ^= std::byte(1 << i % 8);
  }
  std::set<uint64_t> seen;
  for (std::size_t size = 0; size < 40; ++size)
    EXPECT_TRUE(seen.insert(io::checksum(std::vector<std::byte>(size))).second) << size;
}

TEST(Checksum, IsWrittenAsSixteenDigits) {
  EXPECT_EQ(io::checksum_text(io::checksum({})), "cbf29ce484222325");
  EXPECT_EQ(io::checksum_text(10), "000000000000000a");
}

}  // namespace
