package kafka

import (
	"log/slog"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
)

// busyCluster confirms a topic before its broker knows about it.
type busyCluster struct {
	sarama.ClusterAdmin

	behind time.Duration
}

func (c busyCluster) CreateTopic(topic string, detail *sarama.TopicDetail, _ bool) error {
	time.AfterFunc(c.behind, func() { _ = c.ClusterAdmin.CreateTopic(topic, detail, false) })

	return nil
}

// TestATopicThatTheBrokerHearsAboutLateIsNotRefused: the client library's own tries last
// less than a second.
func TestATopicThatTheBrokerHearsAboutLateIsNotRefused(t *testing.T) {
	t.Parallel()

	client := newClient(t)

	admin, err := sarama.NewClusterAdminFromClient(client)
	if err != nil {
		t.Fatal(err)
	}

	d := New(Config{Partitions: partitions, ReplicationFactor: 1}, slog.New(slog.DiscardHandler))
	topic := driver.Topic{Name: "late-" + uuid.NewString()}

	if err := d.create(client, busyCluster{admin, 2 * time.Second}, topic); err != nil {
		t.Fatal(err)
	}

	if known, err := client.Partitions(topic.Name); err != nil || len(known) != partitions {
		t.Errorf("got partitions %v, %v", known, err)
	}
}
