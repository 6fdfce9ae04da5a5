package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/IBM/sarama"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/broker/driver"
)

var errMissing = errors.New("the topic does not exist, and the account cannot create it")

// prepare checks topics, creates those that are missing, and remembers those that the
// account cannot use. It fails only if the broker does not answer.
func (d *Driver) prepare(client sarama.Client, topics []driver.Topic) error {
	admin, err := sarama.NewClusterAdminFromClient(client)
	if err != nil {
		return fmt.Errorf("connecting kafka admin: %w", err)
	}
	// Closing the admin would close the client.

	names := make([]string, len(topics))
	for i, topic := range topics {
		names[i] = d.cfg.Prefix + topic.Name
	}

	if len(names) == 0 { // no name means all topics
		return nil
	}

	found, err := admin.DescribeTopics(names)
	if err != nil {
		return fmt.Errorf("reading the topics: %w", err)
	}

	for _, topic := range topics {
		i := slices.IndexFunc(found, func(m *sarama.TopicMetadata) bool { return m.Name == d.cfg.Prefix+topic.Name })
		if i < 0 {
			return fmt.Errorf("reading topic %s: %w", topic.Name, sarama.ErrIncompleteResponse)
		}

		if err := d.prepareTopic(client, admin, topic, found[i]); err != nil {
			return err
		}
	}

	return nil
}

func (d *Driver) prepareTopic(client sarama.Client, admin sarama.ClusterAdmin, topic driver.Topic, found *sarama.TopicMetadata) error {
	var err error

	switch found.Err {
	case sarama.ErrNoError:
		d.compare(topic, len(found.Partitions))
	case sarama.ErrUnknownTopicOrPartition:
		err = d.create(client, admin, topic)
	default:
		err = found.Err
	}

	refused := refusalOf(topic.Name, err)
	if err != nil && refused == nil {
		return fmt.Errorf("preparing topic %s: %w", topic.Name, err)
	}

	d.note(topic, refused)

	return nil
}

// compare warns if an existing topic differs from the configuration. The topic is used
// anyway.
func (d *Driver) compare(topic driver.Topic, partitions int) {
	if partitions != int(d.cfg.Partitions) {
		d.logger.Warn("topic does not have the configured number of partitions",
			slog.String("topic", topic.Name), slog.Int("partitions", partitions), slog.Int("configured", int(d.cfg.Partitions)))
	}
}

// knownTimeout is how long create waits until the brokers know about a topic. A busy
// cluster takes seconds.
const knownTimeout = 15 * time.Second

// create creates a topic and waits until the client knows about it. Until the cluster has
// told the broker that the client asks, that broker denies that the topic exists.
func (d *Driver) create(client sarama.Client, admin sarama.ClusterAdmin, topic driver.Topic) error {
	name := d.cfg.Prefix + topic.Name

	err := admin.CreateTopic(name, &sarama.TopicDetail{NumPartitions: d.cfg.Partitions, ReplicationFactor: d.cfg.ReplicationFactor}, false)

	switch {
	case errors.Is(err, sarama.ErrTopicAuthorizationFailed), errors.Is(err, sarama.ErrClusterAuthorizationFailed):
		return &driver.RefusedError{Scope: driver.OneTopic, Topic: topic.Name, Remedy: missingTopic, Err: errMissing}
	case err != nil && !errors.Is(err, sarama.ErrTopicAlreadyExists):
		return err
	}

	ctx, cancel := context.WithTimeout(d.dialing, knownTimeout)
	defer cancel()

	for {
		err := client.RefreshMetadata(name)
		unknown := errors.Is(err, sarama.ErrUnknownTopicOrPartition) || errors.Is(err, sarama.ErrLeaderNotAvailable)

		if !unknown || backoff.Sleep(ctx, tryWait) != nil {
			return err
		}
	}
}

// note remembers whether a topic is refused, and logs a refusal at increasing intervals.
func (d *Driver) note(topic driver.Topic, refused *driver.RefusedError) {
	d.refusedMu.Lock()
	defer d.refusedMu.Unlock()

	was, known := d.refused[topic]

	switch {
	case refused == nil && !known:
		return
	case refused == nil:
		d.logger.Info("topic can be used", slog.String("topic", topic.Name))
		delete(d.refused, topic)

		return
	}

	if d.refused == nil {
		d.refused = map[driver.Topic]refusedTopic{}
	}

	if !known {
		was.since, was.reminder = time.Now().UTC(), &backoff.Reminder{}
	}

	was.RefusedError = refused
	d.refused[topic] = was

	if was.reminder.Due(refused) {
		d.logger.Warn("topic cannot be used",
			slog.String("topic", topic.Name), slog.Any("error", refused.Err), slog.String("remedy", refused.Remedy))
	}
}

// refusedTopic is a topic that the broker refuses, with the time of the first refusal.
type refusedTopic struct {
	*driver.RefusedError

	since    time.Time
	reminder *backoff.Reminder
}

// Refusals implements driver.Driver.
func (d *Driver) Refusals() (list []driver.Refusal) {
	d.refusedMu.Lock()
	defer d.refusedMu.Unlock()

	for topic, refused := range d.refused {
		if topic.Consumed {
			list = append(list, driver.Refusal{Topic: topic.Name, Since: refused.since, Err: refused.RefusedError})
		}
	}

	for _, refusal := range d.unjoined.List() {
		if _, known := d.refused[driver.Topic{Name: refusal.Topic, Consumed: true}]; !known {
			list = append(list, refusal)
		}
	}

	slices.SortFunc(list, func(a, b driver.Refusal) int { return cmp.Compare(a.Topic, b.Topic) })

	return list
}

// prepareRefused checks the refused topics again.
func (d *Driver) prepareRefused(client sarama.Client) error {
	d.refusedMu.Lock()
	topics := slices.Collect(maps.Keys(d.refused))
	d.refusedMu.Unlock()

	return d.prepare(client, topics)
}
