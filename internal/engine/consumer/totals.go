package consumer

import (
	dto "github.com/prometheus/client_model/go"

	"github.com/millracehq/millrace/internal/telemetry"
)

// Totals is what a consumer has done since its process started.
type Totals struct {
	// Applied is the number of messages that were applied.
	Applied int64
	// Handle has the time from the delivery of each message to its acknowledgement, in
	// seconds, and Batch the number of messages in each transaction.
	Handle, Batch telemetry.Distribution
}

// Totals returns what each consumer has done, by name.
func (r *Router) Totals() map[string]Totals {
	counts := telemetry.Read(r.metrics.messages, "consumer", func(n int64, m *dto.Metric) int64 {
		for _, pair := range m.GetLabel() {
			if pair.GetName() == "outcome" && pair.GetValue() == string(applied) {
				n += int64(m.GetCounter().GetValue())
			}
		}

		return n
	})
	handle := telemetry.Read(r.metrics.handle, "consumer", telemetry.DistributionOf)
	batch := telemetry.Read(r.metrics.batchSize, "consumer", telemetry.DistributionOf)
	totals := map[string]Totals{}

	for _, route := range r.routes {
		totals[route.Consumer] = Totals{Applied: counts[route.Consumer], Handle: handle[route.Consumer], Batch: batch[route.Consumer]}
	}

	return totals
}
