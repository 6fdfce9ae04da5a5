package console

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/a-h/templ"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/telemetry"
)

func (c *Console) registerConsumers() {
	c.show("/consumers", access.Viewer, c.consumers)
	c.show("/consumers/{consumer}", access.Viewer, c.consumer)
	c.act("/consumers/{consumer}/pause", access.Operator, c.pause)
	c.act("/consumers/{consumer}/resume", access.Operator, c.resume)
}

// consumerView is a consumer with what it did lately.
type consumerView struct {
	operate.Consumer

	Trend   operate.Trend
	Backlog string
	// Partitions are the messages waiting in each partition, if the broker has any.
	Partitions []partition
	Operator   bool
}

type partition struct {
	Number   int32
	Messages int64
}

// topicView is a topic, and who publishes and consumes it.
type topicView struct {
	Topic, Broker string
	Consumers     []string
	Personal      bool
}

// readConsumers returns the consumers of this process.
func (c *Console) readConsumers(r *http.Request) ([]consumerView, error) {
	list, err := c.Consumers(r.Context())
	if err != nil {
		return nil, err
	}

	trends, _ := c.Trends()
	backlogs := c.Here(r.Context(), masked(r))
	views := make([]consumerView, len(list))

	for i, s := range list {
		if masked(r) {
			s = operate.MaskConsumer(s)
		}

		views[i] = consumerView{Consumer: s, Trend: trends[s.Consumer], Backlog: backlogs.Backlog(s.Topic), Operator: !masked(r)}

		for _, b := range backlogs.Backlogs {
			if b.Topic == s.Topic {
				for _, number := range slices.Sorted(maps.Keys(b.Partitions())) {
					views[i].Partitions = append(views[i].Partitions, partition{number, b.Partitions()[number]})
				}
			}
		}
	}

	return views, nil
}

func (c *Console) consumers(r *http.Request) (page, error) {
	views, err := c.readConsumers(r)
	if err != nil {
		return page{}, err
	}

	return page{Title: "Consumers and brokers", Section: "/consumers", Live: true, Body: consumersBody(views, c.Process().Connected, c.topics())}, nil
}

// topics returns the topics that the service consumes or publishes.
func (c *Console) topics() (list []topicView) {
	for _, topic := range c.Topics() {
		v := topicView{Topic: topic, Broker: c.Brokers.Of(topic).Kind(), Personal: c.Router.Personal(topic)}

		for _, route := range c.Router.Routes() {
			if route.Topic == topic {
				v.Consumers = append(v.Consumers, route.Consumer)
			}
		}

		list = append(list, v)
	}

	return list
}

func (c *Console) consumer(r *http.Request) (page, error) {
	name := r.PathValue("consumer")
	if err := c.Router.Known(name); err != nil {
		return page{}, err
	}

	views, err := c.readConsumers(r)
	if err != nil {
		return page{}, err
	}

	v := views[slices.IndexFunc(views, func(v consumerView) bool { return v.Consumer.Consumer == name })]
	p := page{Title: name, Section: "/consumers", Live: true, Body: consumerBody(v)}

	if v.Operator {
		p.Tail = pauseForms(v.Consumer)
	}

	return p, nil
}

func (c *Console) pause(r *http.Request) (page, error) {
	name := r.PathValue("consumer")
	pausing := operate.Pausing{DryRun: !r.PostForm.Has("apply")}

	if text := strings.TrimSpace(r.PostFormValue("for")); text != "" {
		duration, err := time.ParseDuration(text)
		if err != nil || duration == 0 {
			return page{}, event.Errorf(event.Invalid, "for: is %q, expected a duration such as 30m or 1h", text)
		}

		pausing.For = duration
	}

	done, err := c.Pause(r.Context(), name, pausing, actor(r))
	if err != nil {
		return page{}, err
	}

	if pausing.DryRun {
		return page{Title: "Pause " + name, Section: "/consumers", Body: confirmPause(name, r.PostFormValue("for"), r.PostFormValue("why"), done)}, nil
	}

	o := outcome{Done: name + " is paused on all replicas.", More: done.Effects, Back: "/consumers/" + name, BackText: "Back to " + name}
	if !done.Changed {
		o.NoneOf, o.Done = true, "Nothing has changed: "+name+" was already paused in this way."
	}

	return page{Title: "Pause " + name, Section: "/consumers", Body: outcomePage(o)}, nil
}

func (c *Console) resume(r *http.Request) (page, error) {
	name := r.PathValue("consumer")

	changed, err := c.Router.Resume(r.Context(), name, actor(r))
	if err != nil {
		return page{}, err
	}

	o := outcome{Done: name + " is resumed on all replicas.", Back: "/consumers/" + name, BackText: "Back to " + name}
	if !changed {
		o.NoneOf, o.Done = true, "Nothing has changed: "+name+" was not paused."
	}

	return page{Title: "Resume " + name, Section: "/consumers", Body: outcomePage(o)}, nil
}

// consumerAt returns the address of a consumer, or of an action on it.
func consumerAt(name string, action ...string) templ.SafeURL {
	return templ.SafeURL(strings.Join(append([]string{prefix, "consumers", name}, action...), "/"))
}

// seconds formats a duration in seconds; NaN is unknown.
func seconds(s float64) string {
	switch {
	case math.IsNaN(s) || s < 0:
		return "-"
	case s < 0.001:
		return fmt.Sprintf("%.2g ms", s*1000)
	case s < 1:
		return fmt.Sprintf("%.3g ms", s*1000)
	default:
		return fmt.Sprintf("%.3g s", s)
	}
}

// newest returns the last value of a series, or -1.
func newest(values []float64) float64 {
	if len(values) == 0 {
		return -1
	}

	return values[len(values)-1]
}

// rate formats messages per second.
func rate(values []float64) string {
	if newest(values) < 0 {
		return "-"
	}

	return fmt.Sprintf("%.3g/s", newest(values))
}

// backlogText formats a number of messages that may be unknown.
func backlogText(values []float64) string {
	if newest(values) < 0 {
		return "-"
	}

	return strconv.FormatFloat(newest(values), 'f', 0, 64)
}

// seriesLabel says in words what a sparkline shows.
func seriesLabel(what, last string, values []float64) string {
	return fmt.Sprintf("%s, last 15 minutes: now %s, highest %.3g", what, last, slices.Max(append([]float64{0}, values...)))
}

// sizes returns the labels and counts of a histogram of batch sizes.
func sizes(d telemetry.Distribution) (list []bar) {
	most := int64(1)
	buckets := d.Doubling()

	for _, b := range buckets {
		most = max(most, b.Count)
	}

	for _, b := range buckets {
		label := "1"
		if from := int64(b.UpTo/2) + 1; b.UpTo > 1 {
			label = strconv.FormatInt(from, 10)
			if from != int64(b.UpTo) {
				label += " to " + strconv.FormatInt(int64(b.UpTo), 10)
			}
		}

		list = append(list, bar{Label: label, Count: b.Count, Share: int(100 * b.Count / most)})
	}

	return list
}

// bar is a row of a histogram. Share is its part of the longest, in percent.
type bar struct {
	Label string
	Count int64
	Share int
}

// mean formats the mean size of batches.
func mean(d telemetry.Distribution) string {
	if d.Count == 0 {
		return "-"
	}

	return fmt.Sprintf("%.1f", d.Sum/float64(d.Count))
}

// brokerWord returns the state of a broker in words.
func brokerWord(up bool, why string) string {
	if up {
		return "connected"
	}

	return cmp.Or(why, "not connected")
}

// meter draws a share in percent.
func meter(share int) templ.Component {
	return svg("small-chart", fmt.Sprintf("%d %% of the longest", share), 100, 10, fmt.Sprintf(`<rect class="bar" width="%d" height="10"/>`, max(share, 1)))
}

// failuresOf returns the address of the stopped messages of a consumer.
func failuresOf(name string) templ.SafeURL {
	return templ.SafeURL(filter{State: "stopped", Selection: operate.Selection{Consumer: name}}.at("/failures"))
}
