package console

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/a-h/templ"
)

// sparkline draws values as a line, and says in words what it shows. A negative value is
// unknown.
func sparkline(label string, values []float64) templ.Component {
	const width, height = 120.0, 24.0

	var line strings.Builder

	top := max(slices.Max(append([]float64{0}, values...)), 1e-9)
	move := "M"

	for i, v := range values {
		if v < 0 {
			move = "M"

			continue
		}

		x := width * float64(i) / float64(max(len(values)-1, 1))
		fmt.Fprintf(&line, "%s%.3g %.3g", move, x, 1+(height-2)*(1-v/top))

		move = "L"
	}

	return svg("small-chart", label, width, height, fmt.Sprintf(`<path class="spark" d="%s"/>`, line.String()))
}

// bars draws values as bars, and says in words what they show.
func bars(label string, values []int) templ.Component {
	const width, height, gap = 120.0, 24.0, 1.0

	var b strings.Builder

	top := max(slices.Max(append([]int{0}, values...)), 1)
	step := width / float64(max(len(values), 1))

	for i, v := range values {
		if v == 0 {
			continue
		}

		size := max(height*float64(v)/float64(top), 1.5)
		fmt.Fprintf(&b, `<rect class="bar" x="%.4g" y="%.4g" width="%.4g" height="%.4g"/>`, float64(i)*step, height-size, max(step-gap, 1), size)
	}

	return svg("small-chart", label, width, height, b.String())
}

func svg(class, label string, width, height float64, content string) templ.Component {
	return templ.ComponentFunc(func(_ context.Context, w io.Writer) error {
		_, err := fmt.Fprintf(w, `<svg class="%s" role="img" aria-label="%s" viewBox="0 0 %g %g" preserveAspectRatio="none">%s</svg>`,
			class, templ.EscapeString(label), width, height, content)

		return err
	})
}
