package operate

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millracehq/millrace/internal/telemetry"
)

func TestATrendKnowsWhatIsUnknown(t *testing.T) {
	t.Parallel()

	var one, all Trend

	one.add(30, 15, telemetry.Distribution{}, telemetry.Distribution{}, nil, "a")
	one.add(0, 15, telemetry.Distribution{}, telemetry.Distribution{}, map[string]int64{"a": 3, "b": 4}, "a")
	all.add(0, 15, telemetry.Distribution{}, telemetry.Distribution{}, map[string]int64{"a": 3, "b": 4}, "")

	want := Trend{Rate: []float64{2, 0}, P95: []float64{-1, -1}, Backlog: []float64{-1, 3}, Applied: 30}
	if diff := cmp.Diff(want, one, cmp.AllowUnexported(telemetry.Distribution{})); diff != "" {
		t.Errorf("a consumer (-want +got):\n%s", diff)
	}

	if all.Backlog[0] != 7 {
		t.Errorf("the backlog of all topics is %g", all.Backlog[0])
	}
}
