#include <algorithm>
#include <cmath>

#include "lib/core/errors.h"
#include "lib/pipeline/simulate.h"
#include "lib/pipeline/text.h"

namespace dstrain {

std::string timeline_text(const Program& program, const Simulation& simulation) {
  const auto columns = static_cast<std::size_t>(std::ceil(simulation.total));
  const std::size_t width = std::to_string(program.rank_count() - 1).size();
  std::string text;
  for (std::size_t r = 0; r < program.ranks.size(); ++r) {
    std::string row(columns, '.');
    for (std::size_t i = 0; i < simulation.spans[r].size(); ++i) {
      const Action& a = program.ranks[r][i];
      if (a.kind == Action::Kind::exchange) continue;
      const auto begin = static_cast<std::size_t>(simulation.spans[r][i].begin);
      const auto end = std::min(columns, static_cast<std::size_t>(simulation.spans[r][i].end));
      for (std::size_t c = begin; c < end; ++c)
        row[c] = c == begin ? "0123456789abcdefghijklmnopqrstuvwxyz"[a.micro_batch % 36]
                            : (a.kind == Action::Kind::forward ? '>' : '<');
    }
    std::string label = std::to_string(r);
    label.insert(0, width - label.size(), ' ');
    text += label + " |" + row + "|\n";
  }
  return text;
}

std::string timeline_svg(const Program& program, const Simulation& simulation) {
  constexpr double kLeft = 70, kTop = 40, kRow = 26, kGap = 4;
  const double unit = std::clamp(1100 / std::max(1.0, simulation.total), 4.0, 40.0);
  const double width = kLeft + simulation.total * unit + 20;
  const double height = kTop + static_cast<double>(program.rank_count()) * (kRow + kGap) + 16;
  std::string svg = format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{:.0f}\" height=\"{:.0f}\" font-family=\"sans-serif\" "
      "font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
      "<text x=\"{:.0f}\" y=\"22\" font-size=\"14\">{}: {} stages, {} micro-batches, bubble {:.1f}%</text>\n",
      width, height, kLeft, program.name, program.rank_count(), program.micro_batches, 100 * simulation.bubble);
  for (std::size_t r = 0; r < program.ranks.size(); ++r) {
    const double y = kTop + static_cast<double>(r) * (kRow + kGap);
    svg += format("<text x=\"8\" y=\"{:.1f}\">stage {}</text>\n", y + kRow * 0.65, r);
    svg += format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"#eeeeee\"/>\n", kLeft, y,
                  simulation.total * unit, kRow);
    for (std::size_t i = 0; i < simulation.spans[r].size(); ++i) {
      const Action& a = program.ranks[r][i];
      if (a.kind == Action::Kind::exchange) continue;
      const auto [begin, end] = simulation.spans[r][i];
      const double x = kLeft + begin * unit, w = (end - begin) * unit;
      const char* fill = a.kind == Action::Kind::forward ? "#4c78a8" : "#59a14f";
      svg += format(
          "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\" stroke=\"white\" "
          "stroke-width=\"0.5\"><title>{}</title></rect>\n",
          x, y, w, kRow, fill, to_text(a));
      if (w >= 14)
        svg += format("<text x=\"{:.1f}\" y=\"{:.1f}\" fill=\"white\" text-anchor=\"middle\">{}</text>\n", x + w / 2,
                      y + kRow * 0.65, a.micro_batch);
    }
  }
  return svg + "</svg>\n";
}

}  // namespace dstrain
