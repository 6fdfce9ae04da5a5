package kafka

// partitionOf assigns a key to a partition as Java's default partitioner and librdkafka's
// murmur2_random do, so that a key goes to the same partition whoever publishes it.
func partitionOf(key []byte, partitions int) int32 {
	return int32(murmur2(key)&0x7fffffff) % int32(partitions) //nolint:gosec // Kafka's numbers of partitions have 32 bits
}

// murmur2 is org.apache.kafka.common.utils.Utils.murmur2.
func murmur2(data []byte) uint32 {
	const m = 0x5bd1e995

	h := 0x9747b28c ^ uint32(len(data)) //nolint:gosec // a record is smaller

	for ; len(data) >= 4; data = data[4:] {
		k := uint32(data[0]) | uint32(data[1])<<8 | uint32(data[2])<<16 | uint32(data[3])<<24
		k *= m
		k ^= k >> 24
		h = h*m ^ k*m
	}

	switch len(data) {
	case 3:
		h ^= uint32(data[2]) << 16

		fallthrough
	case 2:
		h ^= uint32(data[1]) << 8

		fallthrough
	case 1:
		h = (h ^ uint32(data[0])) * m
	}

	h = (h ^ h>>13) * m

	return h ^ h>>15
}
