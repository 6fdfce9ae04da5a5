package main

import "fmt"

// ratio compares two figures of the same round, measured under the same conditions.
type ratio struct {
	name     string
	over     point
	baseline point
}

// point is a figure of a scenario.
type point struct{ scenario, figure string }

// ratios returns the ratios in the order of the report.
func ratios() []ratio {
	all := []ratio{
		rate("Kafka, times naive", "throughput/kafka", "throughput/kafka naive"),
		rate("Kafka, times FastStream", "throughput/kafka", "throughput/kafka FastStream"),
		rate("Kafka to embedded", "throughput/kafka", "throughput/embedded"),
		rate("RabbitMQ, times naive", "throughput/rabbitmq", "throughput/rabbitmq naive"),
		rate("RabbitMQ to embedded", "throughput/rabbitmq", "throughput/embedded"),
		rate("embedded to the ceiling", "throughput/embedded", "throughput/ceiling"),
		rate("Kafka, one partition to 8", "keys/kafka one partition", "throughput/kafka"),
		rate("Kafka, one key to uniform keys", "keys/kafka one key", "keys/kafka uniform keys"),
		rate("embedded, one product to 500", "keys/embedded one product", "throughput/embedded"),
		rate("Kafka, one product to 500", "keys/kafka one product", "throughput/kafka"),
		rate("RabbitMQ, one product to 500", "keys/rabbitmq one product", "throughput/rabbitmq"),
		rate("users on Kafka, times naive", "domains/users", "domains/users naive"),
		rate("analytics on Kafka, times naive", "domains/analytics", "domains/analytics naive"),
		rate("legacy users on Kafka, times naive", "domains/legacy users", "domains/legacy users naive"),
	}

	for _, perSecond := range rates() {
		of := func(kind string) string { return latencyAt(kind, perSecond) }

		for _, figure := range []string{p50, p99} {
			all = append(all,
				ratio{fmt.Sprintf("Kafka to embedded, %s at %d/s", figure[:3], perSecond), point{of("kafka"), figure}, point{of("embedded"), figure}},
				ratio{fmt.Sprintf("RabbitMQ to embedded, %s at %d/s", figure[:3], perSecond), point{of("rabbitmq"), figure}, point{of("embedded"), figure}},
			)
		}

		for _, kind := range brokers() {
			all = append(all, ratio{fmt.Sprintf("%s, p99 to p50 at %d/s", kind, perSecond), point{of(kind), p99}, point{of(kind), p50}})
		}
	}

	for _, kind := range brokers() {
		slow, fast := latencyAt(kind, rates()[0]), latencyAt(kind, rates()[1])
		all = append(all,
			ratio{fmt.Sprintf("%s, p50 at %d/s to p50 at %d/s", kind, rates()[1], rates()[0]), point{fast, p50}, point{slow, p50}},
			ratio{fmt.Sprintf("%s, p99 at %d/s to p50 at %d/s", kind, rates()[1], rates()[0]), point{fast, p99}, point{slow, p50}},
			ratio{kind + ", steady load: RSS at the end to after a tenth", point{"steady/" + kind, rssIn(steadySlices - 1)}, point{"steady/" + kind, rssIn(1)}},
			rate(kind+", two replicas to one", "replicas/"+kind+" 2", "replicas/"+kind+" 1"),
			rate(kind+", three replicas to one", "replicas/"+kind+" 3", "replicas/"+kind+" 1"),
			rate(kind+", tracing on to off, orders/s", "tracing/"+kind+" on", "tracing/"+kind+" off"),
			ratio{kind + ", tracing on to off, CPU", point{"tracing/" + kind + " on", cpuTotal}, point{"tracing/" + kind + " off", cpuTotal}},
		)
	}

	return append(all,
		rate("embedded, old database to new", "aged/embedded aged", "aged/embedded empty"),
		rate("Kafka, old database to new", "aged/kafka aged", "aged/kafka empty"),
	)
}

// rate compares the throughput of two scenarios.
func rate(name, over, baseline string) ratio {
	return ratio{name, point{over, perSecond}, point{baseline, perSecond}}
}

// of returns the ratio for each round.
func (r ratio) of(runs map[string][]figures) []figures {
	var (
		found          []figures
		over, baseline = runs[r.over.scenario], runs[r.baseline.scenario]
	)

	for i := range min(len(over), len(baseline)) {
		if base := baseline[i][r.baseline.figure]; base > 0 {
			found = append(found, figures{"ratio": over[i][r.over.figure] / base})
		}
	}

	return found
}
