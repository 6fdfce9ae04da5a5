package app_test

import (
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// scrape returns the series of a service in the text format, in which a native
// histogram takes three.
func scrape(t *testing.T, s *apptest.Service) (series []string) {
	t.Helper()

	code, body := page(t, s, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("%d\n%s", code, body)
	}

	for line := range strings.Lines(body) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			series = append(series, line)
		}
	}

	return series
}

// A series costs memory in Prometheus, and there is one per replica.
func TestAScrapeStaysSmall(t *testing.T) {
	t.Parallel()

	const most = 500

	s := apptest.Start(t)
	s.Seed()
	s.Publish("orders.created", guide(t, "orders.created"))
	s.Publish("user.created", guide(t, "user.created"))
	s.WaitForOrder("order_123", "completed")

	s.Messages("notifications", 1)

	var series []string

	for _, part := range []string{
		`millrace_pool_connections{state="idle"}`,
		`millrace_batch_wait_seconds_count{consumer="fulfilment.place"}`, `millrace_outbox_delay_seconds_count{topic="orders.completed"}`,
		`millrace_outbox_publish_seconds_count{broker="default"}`, `millrace_handle_seconds_count{consumer="notification.route"}`,
	} {
		pgtest.Eventually(t, part+" is measured", func() bool {
			series = scrape(t, s)

			return slices.ContainsFunc(series, func(line string) bool { return strings.HasPrefix(line, part) })
		})
	}

	for _, route := range s.Router.Routes() {
		if !strings.Contains(strings.Join(series, "\n"), `millrace_consumer_running{consumer="`+route.Consumer+`"`) {
			t.Errorf("%s has no metrics", route.Consumer)
		}
	}

	// On Kafka there is one more for each partition of a consumed topic.
	consumed, _ := s.Router.Topics()

	n := len(series) + len(consumed)*int(config.Default().Broker.Kafka.Partitions)
	if n > most {
		t.Errorf("a scrape has %d series, expected at most %d:\n%s", n, most, strings.Join(series, "\n"))
	}

	t.Logf("a scrape has %d series, %d on Kafka", len(series), n)
}

// docs/metrics.md is generated from the source, but what counts is what the service
// exposes.
func TestTheDocumentationListsTheMetricsOfTheService(t *testing.T) {
	t.Parallel()

	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}

	documented := map[string]string{}
	for _, match := range regexp.MustCompile("(?m)^\\| `(millrace_[a-z_]+)` \\| \\w+ \\| ([^|]*) \\|").FindAllStringSubmatch(string(page), -1) {
		documented[match[1]] = strings.NewReplacer("`", "", " ", "").Replace(match[2])
	}

	s := apptest.New(t, pgtest.URL(t))
	described := make(chan *prometheus.Desc)

	go func() {
		defer close(described)

		s.Registry.Describe(described)
	}()

	exists := map[string]string{}
	text := regexp.MustCompile(`fqName: "(millrace_[a-z_]+)".*variableLabels: \{([^}]*)\}`)

	for desc := range described {
		if match := text.FindStringSubmatch(desc.String()); match != nil {
			exists[match[1]] = match[2]
		}
	}

	if !maps.Equal(documented, exists) {
		t.Errorf("docs/metrics.md has\n%v\nand the service\n%v", documented, exists)
	}
}
