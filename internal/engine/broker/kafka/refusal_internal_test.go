package kafka

import (
	"fmt"
	"testing"

	"github.com/IBM/sarama"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
)

// No test server gives these answers, because one replica is enough on a single node.
func TestAnAnswerAboutAPartitionRefusesNotTheTopic(t *testing.T) {
	t.Parallel()

	for _, code := range []sarama.KError{
		sarama.ErrNotEnoughReplicas, sarama.ErrNotEnoughReplicasAfterAppend, sarama.ErrLeaderNotAvailable, sarama.ErrKafkaStorageError,
	} {
		refused := refusalOf("t", fmt.Errorf("publishing: %w", code))
		if refused == nil || refused.Scope != driver.OnePartition || refused.Topic != "t" || refused.Remedy == "" {
			t.Errorf("%v: got %+v", code, refused)
		}
	}
}
