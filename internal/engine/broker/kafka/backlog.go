package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/IBM/sarama"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
)

// lookTimeout bounds each request of Backlogs.
const lookTimeout = 3 * time.Second

// Backlogs implements driver.Driver. A topic's backlog is its consumer group's lag, and
// its subscriptions are the group's members.
func (d *Driver) Backlogs(ctx context.Context, topics []string) (list []driver.Backlog, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	cfg, err := d.settings(ctx)
	if err != nil {
		return nil, err
	}

	cfg.Net.Proxy.Dialer = driver.NewDialer(ctx, lookTimeout)
	cfg.Net.ReadTimeout, cfg.Net.WriteTimeout = lookTimeout, lookTimeout
	cfg.Metadata.Retry.Max, cfg.Admin.Retry.Max = 1, 1

	client, err := d.open(cfg)
	if err != nil {
		return nil, cmp.Or(ctx.Err(), err)
	}

	admin, err := sarama.NewClusterAdminFromClient(client)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connecting kafka admin: %w", err), client.Close())
	}

	defer func() { err = errors.Join(err, admin.Close()) }() // closes the client too

	members, err := d.members(admin, topics)
	if err != nil {
		return nil, fmt.Errorf("reading consumer groups: %w", cmp.Or(ctx.Err(), err))
	}

	kept, err := d.retentions(admin, topics)
	if err != nil {
		return nil, fmt.Errorf("reading topic settings: %w", cmp.Or(ctx.Err(), err))
	}

	for _, topic := range topics {
		b := members[d.group(topic)]
		b.Topic, b.Retention = topic, kept[topic]

		if b.Err == nil {
			b.Partitions, b.Err = d.lag(client, admin, topic)
		}

		for _, lag := range b.Partitions {
			b.Messages += lag
		}

		if ctx.Err() != nil {
			return nil, fmt.Errorf("reading topic %s: %w", topic, ctx.Err())
		}

		list = append(list, b)
	}

	return list, nil
}

// members returns the subscriptions of each topic, by consumer group.
func (d *Driver) members(admin sarama.ClusterAdmin, topics []string) (map[string]driver.Backlog, error) {
	groups := make([]string, len(topics))
	for i, topic := range topics {
		groups[i] = d.group(topic)
	}

	described, err := admin.DescribeConsumerGroups(groups)
	if err != nil {
		return nil, err
	}

	found := make(map[string]driver.Backlog, len(described))

	for _, g := range described {
		b := driver.Backlog{Subscriptions: len(g.Members)}
		if !errors.Is(g.Err, sarama.ErrNoError) {
			b.Err = fmt.Errorf("reading consumer group %s: %w", g.GroupId, g.Err)
		}

		found[g.GroupId] = b
	}

	return found, nil
}

// lag returns, for each partition of a topic, the number of records that the consumer
// group has not committed.
func (d *Driver) lag(client sarama.Client, admin sarama.ClusterAdmin, topic string) (map[int32]int64, error) {
	name := d.cfg.Prefix + topic

	partitions, err := client.Partitions(name)
	if err != nil {
		return nil, fmt.Errorf("reading topic %s: %w", name, err)
	}

	committed, err := admin.ListConsumerGroupOffsets(d.group(topic), map[string][]int32{name: partitions})
	if err != nil {
		return nil, fmt.Errorf("reading consumer group %s: %w", d.group(topic), err)
	}

	ends, begins := map[int32]int64{}, map[int32]int64{}

	for _, partition := range partitions {
		ends[partition] = sarama.OffsetNewest

		if block := committed.GetBlock(name, partition); block == nil || block.Offset < 0 {
			begins[partition] = sarama.OffsetOldest // nothing is committed: the group will begin here
		}
	}

	end, err := offsets(admin, name, ends)
	if err != nil {
		return nil, err
	}

	begin, err := offsets(admin, name, begins)
	if err != nil {
		return nil, err
	}

	lag := make(map[int32]int64, len(partitions))

	for _, partition := range partitions {
		from, isNew := begin[partition]
		if !isNew {
			from = committed.GetBlock(name, partition).Offset
		}

		lag[partition] = max(end[partition]-from, 0)
	}

	return lag, nil
}

// offsets returns the offsets of a topic's partitions at the given positions.
func offsets(admin sarama.ClusterAdmin, topic string, positions map[int32]int64) (map[int32]int64, error) {
	found := make(map[int32]int64, len(positions))
	if len(positions) == 0 {
		return found, nil
	}

	results, err := admin.ListOffsets(map[string]map[int32]int64{topic: positions}, nil)
	if err != nil {
		return nil, fmt.Errorf("reading the offsets of topic %s: %w", topic, err)
	}

	for partition, result := range results[topic] {
		if result.Err != nil && !errors.Is(result.Err, sarama.ErrNoError) {
			return nil, fmt.Errorf("reading the offsets of topic %s: %w", topic, result.Err)
		}

		found[partition] = result.Offset
	}

	return found, nil
}
