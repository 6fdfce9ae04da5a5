package kafka

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/IBM/sarama"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
)

// retentions returns how long each topic keeps records. The segment that is being
// written keeps its records longer. retentions leaves out topics whose settings the
// account cannot read.
func (d *Driver) retentions(admin sarama.ClusterAdmin, topics []string) (map[string]time.Duration, error) {
	resources := make([]*sarama.ConfigResource, len(topics))
	for i, topic := range topics {
		resources[i] = &sarama.ConfigResource{
			Type: sarama.TopicResource, Name: d.cfg.Prefix + topic, ConfigNames: []string{"retention.ms", "cleanup.policy"},
		}
	}

	results, err := admin.DescribeConfigs(resources, sarama.DescribeConfigsOptions{})
	if err != nil {
		return nil, err
	}

	found := make(map[string]time.Duration, len(topics))

	for _, resource := range results {
		if errors.Is(resource.ErrorCode, sarama.ErrNoError) {
			found[strings.TrimPrefix(resource.Name, d.cfg.Prefix)] = retentionOf(resource.Configs)
		}
	}

	return found, nil
}

func retentionOf(settings []sarama.ConfigEntry) time.Duration {
	kept := driver.Forever

	for _, s := range settings {
		switch s.Name {
		case "cleanup.policy":
			if !strings.Contains(s.Value, "delete") {
				return driver.Forever
			}
		case "retention.ms":
			// More milliseconds than a duration can hold amount to no limit.
			if ms, err := strconv.ParseInt(s.Value, 10, 64); err == nil && ms >= 0 && ms < math.MaxInt64/int64(time.Millisecond) {
				kept = time.Duration(ms) * time.Millisecond
			}
		}
	}

	return kept
}
