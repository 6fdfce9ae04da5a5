package kafka

import "github.com/IBM/sarama"

// partitioner assigns keys to partitions as Java's default partitioner and librdkafka's
// murmur2_random do, so that a key goes to the same partition whoever publishes it.
type partitioner struct{}

func newPartitioner(string) sarama.Partitioner { return partitioner{} }

// Partition implements sarama.Partitioner.
func (partitioner) Partition(msg *sarama.ProducerMessage, partitions int32) (int32, error) {
	key, err := msg.Key.Encode() // Marshal sets a key
	if err != nil {
		return 0, err
	}

	return int32(murmur2(key)&0x7fffffff) % partitions, nil
}

// RequiresConsistency implements sarama.Partitioner.
func (partitioner) RequiresConsistency() bool { return true }

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
