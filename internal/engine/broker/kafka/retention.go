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
// account may not read.
func (d *Driver) retentions(admin sarama.ClusterAdmin, topics []string) (map[string]time.Duration, error) {
	broker, err := admin.Controller() // any broker would do
	if err != nil {
		return nil, err
	}

	request := &sarama.DescribeConfigsRequest{Version: 2}
	for _, topic := range topics {
		request.Resources = append(request.Resources, &sarama.ConfigResource{
			Type: sarama.TopicResource, Name: d.cfg.Prefix + topic, ConfigNames: []string{"retention.ms", "cleanup.policy"},
		})
	}

	response, err := broker.DescribeConfigs(request)
	if err != nil {
		return nil, err
	}

	found := make(map[string]time.Duration, len(topics))

	for _, resource := range response.Resources {
		if errors.Is(sarama.KError(resource.ErrorCode), sarama.ErrNoError) {
			found[strings.TrimPrefix(resource.Name, d.cfg.Prefix)] = retentionOf(resource.Configs)
		}
	}

	return found, nil
}

func retentionOf(settings []*sarama.ConfigEntry) time.Duration {
	kept := driver.Forever

	for _, s := range settings {
		switch s.Name {
		case "cleanup.policy":
			if !strings.Contains(s.Value, "delete") {
				return driver.Forever
			}
		case "retention.ms":
			// More milliseconds than a duration can hold are as good as no limit.
			if ms, err := strconv.ParseInt(s.Value, 10, 64); err == nil && ms >= 0 && ms < math.MaxInt64/int64(time.Millisecond) {
				kept = time.Duration(ms) * time.Millisecond
			}
		}
	}

	return kept
}
